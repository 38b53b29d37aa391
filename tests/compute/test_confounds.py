"""Tables of confounds as they are in the world, wherever they come in."""

import numpy as np
import pandas as pd
import pytest
from images import SHAPE, bold, niimg, save
from programs import sharedmask

from sharedmask import (
    SharedImage,
    SharedLabelsMasker,
    SharedMapsMasker,
    SharedMultiMasker,
    SharedMultiNiftiMasker,
    SharedNiftiMasker,
    extract,
    extract_many,
)
from sharedmask.compute.confounds import named_columns, read_confounds
from sharedmask.errors import ConfoundsError, MissingFileError, SharedMaskWarning

N = 12
TABLE = np.random.default_rng(0).normal(size=(N, 3))
ROWS = TABLE.tolist()
INSIDE = niimg(np.ones(SHAPE, "u1"))
LABELS = niimg(np.arange(np.prod(SHAPE), dtype="i2").reshape(SHAPE) % 3)
MAPS = niimg(np.random.default_rng(1).random((*SHAPE, 2)).astype("f4"))


def by_image(path, confounds):
    with SharedImage(path) as image:
        return image.mask(INSIDE, confounds=confounds)


def by_many(path, confounds):
    told = {"on_error": lambda *_: None}
    found = extract_many({"run": path}, INSIDE, confounds={"run": confounds}, n_jobs=1, **told)
    for error in found.errors.values():
        raise error
    return found.results["run"]


def by_multi(path, confounds):
    return SharedMultiMasker([INSIDE]).fit_transform(path, confounds=confounds)[0]


def by_masker(kind, regions):
    def masked(path, confounds):
        masker = kind(regions, standardize=None, reports=False)
        return masker.fit_transform(path, confounds=confounds)

    return masked


def by_program(path, confounds):
    if isinstance(confounds, pd.DataFrame):
        pytest.skip("has no name")
    if isinstance(confounds, np.ndarray):
        confounds = save_plain(path.with_name("plain.tsv"), confounds)
    save(atlas := path.with_name("atlas.nii.gz"), np.asarray(LABELS.dataobj))
    options = ["--atlas", atlas, "--confounds", confounds, "-o", path.with_name("out.tsv")]
    ended = sharedmask("extract", path, *options)
    if ended.code:
        raised = {65: ConfoundsError, 66: MissingFileError}[ended.code]
        raise raised(ended.err.removeprefix("sharedmask: ").rstrip())
    return np.loadtxt(path.with_name("out.tsv"), skiprows=1)


def save_plain(path, table):
    np.savetxt(path, table)
    return path


ENTRIES = {
    "extract": lambda path, confounds: extract(path, INSIDE, confounds=confounds),
    "extract_many": by_many,
    "SharedImage": by_image,
    "SharedNiftiMasker": by_masker(SharedNiftiMasker, INSIDE),
    "SharedLabelsMasker": by_masker(SharedLabelsMasker, LABELS),
    "SharedMapsMasker": by_masker(SharedMapsMasker, MAPS),
    "SharedMultiMasker": by_multi,
    "the command line": by_program,
}


@pytest.fixture(params=ENTRIES.values(), ids=ENTRIES.keys())
def masked(request, path):
    """What makes signals with confounds regressed out."""
    return lambda confounds: request.param(path, confounds)


def data_frame():
    return pd.DataFrame(TABLE, columns=["x", "y", "z"])


def in_text(between="\t", header=("x", "y", "z"), rows=ROWS):
    return "".join(between.join(map(str, row)) + "\n" for row in ([header, *rows] if header else rows))


WORLD = {
    "semicolons": in_text(";"),
    "blanks after commas": in_text(", "),
    "comments of AFNI": "# 3dvolreg\n# x y z\n" + in_text(" ", None),
    "comments after the header": in_text().replace("\n", "\n# motion\n", 1),
    "tabs at the ends of rows": in_text().replace("\n", "\t\n"),
    "tabs at the ends of numbers": in_text(header=None).replace("\n", "\t\n"),
    "a last row of tabs": in_text() + "\t\t\n",
    "pandas' numbers of rows": in_text(",", ("", "x", "y", "z"), [[i, *row] for i, row in enumerate(ROWS)]),
    "R's numbers of rows": in_text(
        ",", ('""', '"x"', '"y"', '"z"'), [[f'"{i}"', *r] for i, r in enumerate(ROWS, 1)]
    ),
    "pandas' numbers of columns": in_text(header=range(3)),
    "both of pandas' numbers": in_text(",", ("", 0, 1, 2), [[i, *row] for i, row in enumerate(ROWS)]),
    "mark of UTF-8, no header": "\ufeff" + in_text(header=None),
    "blanks around": in_text("  ", None).replace("\n", "  \n  "),
}


@pytest.mark.some(16)
@pytest.mark.parametrize(
    "content",
    [*(text.encode() for text in WORLD.values()), in_text().encode("utf-16")],
    ids=[*WORLD, "UTF-16"],
)
def test_confounds_as_they_are_in_the_world(content, masked, tmp_path):
    path = tmp_path / "confounds.txt"
    path.write_bytes(content)
    np.testing.assert_array_equal(masked(path), masked(TABLE))


NOT_PLAIN = {
    "decimal commas": (in_text().replace(".", ","), r"in row 0, column 'x' is not a number; decimals have a"),
    "decimal commas, semicolons": (
        in_text(";").replace(".", ","),
        r"column 'x' is not a number; decimals have a",
    ),
    "a column without a name": (in_text(header=("x", "", "z")), "column 1 has no name"),
    "a column more than names": (in_text(header=("x", "y")), "column 2 has no name"),
    "text": (
        in_text(rows=[*ROWS[:-1], [1, "rest", 2]]),
        "'rest' in row 11, column 'y' is not a",
    ),
    "n/a first": (
        in_text(rows=[[1, 2, "n/a"], *ROWS[1:]]),
        "no finite number in row 0, column 'z'",
    ),
    "n/a first, no header": (in_text(" ", None, [[1, 2, "n/a"], *ROWS[1:]]), "in row 0, column 2"),
    "a short row": (in_text(rows=[[1, 2], *ROWS[1:]]), "no finite number in row 0, column 'z'"),
    "another encoding": (in_text(header=("x", "y", "dr\xe9")).encode("latin-1"), "byte 6 is not UTF-8 text"),
}


@pytest.mark.some(30)
@pytest.mark.parametrize(("content", "problem"), NOT_PLAIN.values(), ids=NOT_PLAIN.keys())
def test_confounds_that_are_not_plain_are_refused(content, problem, masked, tmp_path):
    path = tmp_path / "confounds.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfoundsError, match=problem) as caught:
        masked(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


NOT_THERE = {
    "none": (lambda path: None, "does not exist"),
    "a link to nothing": (lambda path: path.symlink_to(".git/annex/objects/x"), "is a link to .*datalad get"),
}


@pytest.mark.some(12)
@pytest.mark.parametrize(("make", "problem"), NOT_THERE.values(), ids=NOT_THERE.keys())
def test_confounds_that_are_not_there_are_said_to_be_missing(make, problem, masked, tmp_path):
    make(path := tmp_path / "confounds.tsv")
    with pytest.raises(MissingFileError, match=rf"^confounds {path} {problem}"):
        masked(path)


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        (data_frame().assign(trial="rest"), "column 'trial': could not convert"),
        (data_frame().assign(y=np.nan), "no finite number in row 0, column 'y'"),
    ],
)
def test_frames_of_confounds_that_are_not_plain_are_refused(frame, problem, masked):
    with pytest.raises(ConfoundsError, match=problem):
        masked(frame)


def test_what_an_array_masks_is_no_number():
    with pytest.raises(ConfoundsError, match="no finite number in row 0, column 1"):
        read_confounds(np.ma.masked_equal([[1.0, 2.0], [3.0, 4.0]], 2.0))


def by_call(name, *arguments):
    def called(path, **how):
        with SharedImage(path) as image:
            return getattr(image, name)(*arguments, **how)

    return called


CLEANED = {
    "extract": lambda path, **how: extract(path, INSIDE, **how),
    "extract of means": lambda path, **how: extract(path, LABELS, strategy="mean", **how),
    "extract_many": lambda path, **how: extract_many(
        [path],
        INSIDE,
        n_jobs=1,
        **{name: [given] if np.ndim(given) else given for name, given in how.items()},
    ),
    "mask": by_call("mask", INSIDE),
    "map": by_call("map", np.mean, [INSIDE]),
    "reduce": by_call("reduce", LABELS),
    "connectivity": by_call("connectivity", LABELS),
    "seed_maps": by_call("seed_maps", [INSIDE]),
}
TOO_MANY = {
    "as many as volumes": (N, {}),
    "one less, and the mean": (N - 1, {}),
    "two less, and a trend": (N - 2, {"detrend": True}),
    "as many as volumes that are kept": (5, {"sample_mask": np.arange(5)}),
}


@pytest.mark.some(8)
@pytest.mark.parametrize("cleaned", CLEANED.values(), ids=CLEANED.keys())
@pytest.mark.parametrize(("n_columns", "how"), TOO_MANY.values(), ids=TOO_MANY.keys())
def test_confounds_that_leave_nothing_are_warned_of(n_columns, how, cleaned, path):
    table = np.random.default_rng(2).normal(size=(N, n_columns)) * 10.0 ** np.arange(n_columns)
    n_kept = len(how.get("sample_mask", range(N)))
    said = f"sub-01_bold.nii.gz: {n_columns} confounds of {n_kept} volumes leave nothing"
    with pytest.warns(SharedMaskWarning, match=said):
        cleaned(path, confounds=table, **how)


@pytest.mark.parametrize(
    "table",
    [
        np.random.default_rng(2).normal(size=(N, N - 2)),
        np.repeat(TABLE, 5, axis=1),
        np.hstack([TABLE, np.ones((N, N))]),
    ],
    ids=["enough is left", "many times the same", "constant"],
)
def test_many_confounds_that_leave_something_are_none_to_warn_of(table, path):
    assert extract(path, INSIDE, confounds=table).std() > 1e-3


LONG = 40
LEFT = [0, 1, 7, 20, LONG - 8, LONG - 1]  # some of them as far from the beginning as others from the end
LEFT_OUT = {
    "array": lambda table, path: table,
    "data frame": lambda table, path: pd.DataFrame(table, columns=["x", "y", "z"]),
    "file": lambda table, path: save_text(path, table),
    "list": lambda table, path: [table[:, :1], save_text(path, table[:, 1:])],
}
KEPT = {
    "numbers": np.setdiff1d(np.arange(LONG), LEFT),
    "booleans": ~np.isin(np.arange(LONG), LEFT),
    "a list of numbers": [np.setdiff1d(np.arange(LONG), LEFT)],
}
BY_VOLUMES_KEPT = {
    "extract": lambda path, **how: extract(path, INSIDE, **how),
    "SharedImage": lambda path, **how: by_image_kept(path, **how),
    "SharedNiftiMasker": lambda path, **how: by_masker_kept(SharedNiftiMasker(INSIDE), path, **how),
    "SharedLabelsMasker": lambda path, **how: by_masker_kept(SharedLabelsMasker(LABELS), path, **how),
    "SharedMapsMasker": lambda path, **how: by_masker_kept(SharedMapsMasker(MAPS), path, **how),
    "SharedMultiNiftiMasker": lambda path, **how: by_runs_kept(path, **how),
}


def save_text(path, table):
    pd.DataFrame(table).add_prefix("c").to_csv(path, sep="\t", index=False, na_rep="n/a")
    return path


def by_image_kept(path, **how):
    with SharedImage(path) as image:
        return image.mask(INSIDE, **how)


def by_masker_kept(masker, path, **how):
    masker.set_params(standardize=None, reports=False, low_pass=how.pop("low_pass"), t_r=how.pop("t_r"))
    return masker.fit().transform(path, **how)


def by_runs_kept(path, confounds, sample_mask, **how):
    each = [sample_mask[0] if isinstance(sample_mask, list) else sample_mask]
    masker = SharedMultiNiftiMasker(INSIDE)
    return by_masker_kept(masker, [path], confounds=[confounds], sample_mask=each, **how)[0]


@pytest.mark.some(12)
@pytest.mark.parametrize("low_pass", [None, 0.1])
@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT.keys())
@pytest.mark.parametrize("given", LEFT_OUT.values(), ids=LEFT_OUT.keys())
@pytest.mark.parametrize("made", BY_VOLUMES_KEPT.values(), ids=BY_VOLUMES_KEPT.keys())
def test_volumes_that_are_left_out_need_no_confounds(made, given, kept, low_pass, tmp_path):
    """As the first of fMRIPrep's derivatives, where the first volumes are not steady yet."""
    path = save(tmp_path / "sub-01_bold.nii.gz", bold((*SHAPE, LONG)))
    table = np.random.default_rng(1).normal(size=(LONG, 3))
    without = table.copy()
    without[LEFT] = np.nan
    without[7, 2] = np.inf
    without[20] = table[20]
    lost = [place for place in LEFT if place != 20]
    there = np.setdiff1d(np.arange(LONG), LEFT)
    table[lost] = np.transpose([np.interp(lost, there, column[there]) for column in table.T])
    how = {"sample_mask": kept, "low_pass": low_pass, "t_r": 2.0}
    text = tmp_path / "confounds.tsv"
    found = made(path, confounds=given(without, text), **how)
    expected = made(path, confounds=given(table, text), **how)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    with pytest.raises(ConfoundsError, match="no finite number in row 0"):
        made(path, confounds=given(without, text), **(how | {"sample_mask": None}))
    without[5, 2] = np.nan
    with pytest.raises(ConfoundsError, match="no finite number in row 5"):
        made(path, confounds=given(without, text), **how)


def test_a_row_of_numbers_is_read_as_one_cell_by_cell(tmp_path):
    """Rows that have nothing but numbers are read at once."""
    cells = ["1e-3", "-inf", "NaN", "7", ".5"]
    (tmp_path / "a.tsv").write_text("\t".join("abcde") + "\n" + "\t".join(cells) + "\nn/a\t1\t\t2\t3\n")
    names, table = named_columns(tmp_path / "a.tsv")
    assert names == list("abcde")
    np.testing.assert_array_equal(table, [list(map(float, cells)), [np.nan, 1, np.nan, 2, 3]])
    (tmp_path / "b.tsv").write_text("a\tb\n1\t1_0\n")
    with pytest.raises(ConfoundsError, match="'1_0' in row 0, column 'b' is not a number"):
        named_columns(tmp_path / "b.tsv")
