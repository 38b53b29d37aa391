"""Look-up tables of labels, of every kind."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from datasets import preprocessed
from images import SHAPE as RUN_SHAPE
from images import bold, save
from nilearn.maskers import NiftiLabelsMasker
from oblique import SHAPE
from programs import sharedmask, sharedmask_bids
from sklearn.utils import Bunch

from sharedmask import SharedImage, SharedLabelsMasker, errors, extract, extract_many
from sharedmask.regions.regions import Regions
from sharedmask.regions.sets import RegionRow


class Frame:
    """What of a DataFrame is used."""

    def __init__(self, **columns):
        self.columns = list(columns)
        self._columns = columns

    def __getitem__(self, name):
        return np.asarray(self._columns[name])


def test_look_up_tables(tmp_path, grid):
    data = np.arange(60).reshape(SHAPE) % 4
    tsv = "index\tname\tcolor\n0\tbackground\t#000\n1\tInsula, left\t#111\n3\tPutamen\t#222\n7\tLost\t#333\n"
    (tmp_path / "dseg.tsv").write_text(tsv)
    (tmp_path / "bom.csv").write_text(
        'name,index\nbackground,0\n"Insula, left",1.0\nPutamen,3\nLost,7\n\n', encoding="utf-8-sig"
    )
    tables = [
        tmp_path / "dseg.tsv",
        str(tmp_path / "bom.csv"),
        pd.DataFrame({"index": [0, 1, 3, 7], "name": ["background", "Insula, left", "Putamen", "Lost"]}),
        Frame(index=[0.0, 1.0, 3.0, 7.0], name=["background", "Insula, left", "Putamen", "Lost"]),
        {np.int16(0): "background", 1: "Insula, left", 3: "Putamen", "7": "Lost"},
    ]
    for lut in tables:
        made = Regions.from_labels(data, grid, lut=lut)
        assert made.names == ("Insula, left", "2", "Putamen")
        assert made.keys == made.names
        assert made.missing == ((7, "Lost"),)
        assert made.table()[-1] == RegionRow(7, "Lost", 0, 0, 0.0, None)
        assert all(type(label) is int for label in made.labels)


def test_equal_names_in_a_table_lose_no_region(grid):
    data = np.arange(60).reshape(SHAPE) % 4
    made = Regions.from_labels(data, grid, lut={1: "unknown", 2: "unknown", 3: "x"})
    assert made.pack([1, 2, 3]) == {"unknown": 1, "unknown_2": 2, "x": 3}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("index\tregion\n1\ta\n", r"no column name, only \['index', 'region'\]: expected are the columns"),
        ("value\tregion\n1\ta\n", "no column index nor name"),
        ("", "no column index nor name"),
        ("index\tname\n1\ta\n1\tb\n", "has the index 1 twice: 'a' and 'b'"),
        ("index\tname\n1.5\ta\n", "index '1.5' is not an integer"),
        ("index\tname\nn/a\ta\n", "index 'n/a' is not an integer"),
        ("index\tname\ninf\ta\n", "index 'inf' is not an integer"),
        ("name\tindex\nalone\n", "index '' is not an integer"),
        ('index\tname\n1\t"a"b\n', "cannot be read"),
    ],
)
def test_look_up_tables_refused(tmp_path, grid, text, problem):
    lut = tmp_path / "lut.tsv"
    lut.write_text(text)
    with pytest.raises(errors.MaskError, match=problem) as caught:
        Regions.from_labels(np.ones(SHAPE), grid, lut=lut)
    assert str(lut) in str(caught.value)


def test_look_up_tables_missing_or_of_another_kind(tmp_path, grid):
    with pytest.raises(errors.MissingFileError, match=r"gone\.tsv does not exist"):
        Regions.from_labels(np.ones(SHAPE), grid, lut=tmp_path / "gone.tsv")
    (tmp_path / "binary.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(errors.MaskError, match=r"binary\.tsv cannot be read"):
        Regions.from_labels(np.ones(SHAPE), grid, lut=tmp_path / "binary.tsv")
    with pytest.raises(
        errors.MaskError, match=r"not a path, a DataFrame .* but a list: give \{value: name\}"
    ):
        Regions.from_labels(np.ones(SHAPE), grid, lut=["a"])


# ---- the tables of the world, wherever they come in

LABELS = (2, 17, 1012)
NAMED = ("L-WM", "Hippo", "ctx lof")
PAIRS = tuple(zip(LABELS, NAMED, strict=True))


def _lines(*rows, between="\t"):
    return "".join(between.join(row) + "\n" for row in rows)


def _named(header, between="\t", names=NAMED):
    rows = [(str(label), name) for label, name in zip(LABELS, names, strict=True)]
    return _lines(header, *rows, between=between)


FREESURFER = """#$Id: FreeSurferColorLUT.txt
#No. Label Name:            R   G   B   A

0   Unknown                 0   0   0   0
2   L-WM                    245 245 245 0
# the hippocampus
17  Hippo                   220 216 20  0
1012    ctx_lof             35  75  50  0
"""
TABLES = {
    "BIDS": _named(("index", "name")),
    "AtlasPack": _named(("index", "label")),
    "capitals": _named(("Index", "Name")),
    "name before label": _lines(("label", "index", "name"), *((n[:1], str(k), n) for k, n in PAIRS)),
    "not sorted": _lines(("index", "name"), ("1012", "ctx lof"), ("2", "L-WM"), ("17", "Hippo")),
    "labels that are absent": _named(("index", "name")) + "3\tnil\n1\tnone\n",
    "a row twice": _named(("index", "name")) + "17\tHippo\n",
    "floats": _lines(("index", "name"), ("2.0", "L-WM"), ("17.0", "Hippo"), ("1012.0", "ctx lof")),
    "background": _lines(("index", "name"), ("0", "Unknown"), *((str(k), n) for k, n in PAIRS)),
    "no header": _lines(*((str(k), n) for k, n in PAIRS)),
    "semicolons": _named(("index", "name"), ";"),
    "commas": _named(("index", "name"), ","),
    "blanks after commas": _named(("index", "name"), ", "),
    "quotes": _named(("index", "name"), ",", [f'"{name}"' for name in NAMED]),
    "quotes after blanks": _named(("index", "name"), ", ", [f'"{name}"' for name in NAMED]),
    "mark of UTF-8": "\ufeff" + _named(("index", "name")),
    "rows of a spreadsheet": _named(("index", "name")).replace("\n", "\r\n"),
    "tabs at the ends": _named(("index", "name")).replace("\n", "\t\n"),
    "a last row of tabs": _named(("index", "name")) + "\t\t\n",
    "blank rows": _named(("index", "name")).replace("\n", "\n\n"),
    "short rows": _named(("index", "name", "color")),
    "colours first": _lines(("color", "index", "name"), *(("#fff", str(k), n) for k, n in PAIRS)),
    "comments": "# of the study\n" + _named(("index", "name")),
    "pandas' numbers of rows": _lines(("", "index", "name"), *(("0", str(k), n) for k, n in PAIRS)),
}
ENCODED = {name: text.encode() for name, text in TABLES.items()} | {
    "UTF-16": TABLES["BIDS"].encode("utf-16"),
    "UTF-16, big-endian": ("\ufeff" + TABLES["BIDS"]).encode("utf-16-be"),
}


@pytest.fixture
def atlas(tmp_path):
    """A run and an atlas of three labels, with room for a table beside it."""
    labels = np.repeat(np.array([0, *LABELS], "i4"), 2)[:7, None, None] * np.ones(RUN_SHAPE, "i4")
    folder = tmp_path / "atlases"
    folder.mkdir()
    save(tmp_path / "bold.nii.gz", bold())
    return save(folder / "tpl-MNI152NLin2009cAsym_atlas-Toy_dseg.nii.gz", labels)


def by_regions(atlas, lut, out):
    return Regions.from_labels(atlas, lut=lut).names


def by_masker(atlas, lut, out):
    masker = SharedLabelsMasker(atlas, lut=lut, standardize=None, reports=False)
    signals = masker.fit_transform(out.parent / "bold.nii.gz")
    expected = NiftiLabelsMasker(atlas, standardize=None, reports=False).fit_transform(
        out.parent / "bold.nii.gz"
    )
    np.testing.assert_array_equal(signals, expected)
    assert masker.region_ids_ == {"background": 0, **dict(enumerate(LABELS))}
    table = masker.region_table_
    assert table["index"].tolist() == list(LABELS) and table["column"].tolist() == [0, 1, 2]
    assert table["name"].tolist() == list(masker.region_names_.values())
    return tuple(table["name"])


def by_extract(atlas, lut, out):
    program = sharedmask("extract", out.parent / "bold.nii.gz", "--atlas", atlas, "--lut", lut, "-o", out)
    assert program.code == 0, program.err
    return tuple(pd.read_csv(out, sep="\t"))


def by_run(atlas, lut, out):
    images = ["run", out.parent / "bold.nii.gz", "--output-dir", out.parent]
    program = sharedmask(*images, "--atlas", atlas, "--lut", lut)
    assert program.code == 0, program.err
    return tuple(pd.read_csv(out.parent / "bold.tsv", sep="\t"))


def by_bids(atlas, lut, out):
    lut.rename(atlas.with_name(atlas.name.replace(".nii.gz", ".tsv")))
    dataset = preprocessed(out.parent / "fmriprep", subjects=("01",))
    options = ["--atlases", atlas, "--no-reports", "--min-coverage", "0"]
    program = sharedmask_bids(dataset, out.parent / "out", "participant", *options)
    assert program.code == 0, program.err
    (table,) = (out.parent / "out").rglob("*_timeseries.tsv")
    assert json.loads(table.with_suffix(".json").read_text())["AtlasLabels"]
    names = pd.read_csv(table, sep="\t").dropna(axis="columns", how="all")
    return tuple(names)


ENTRIES = [by_regions, by_masker, by_extract, by_run, by_bids]


@pytest.mark.some(40)
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("content", ENCODED.values(), ids=ENCODED.keys())
def test_tables_of_the_world_name_the_right_regions(atlas, tmp_path, content, entry):
    if entry in (by_run, by_bids) and content not in (ENCODED["AtlasPack"], ENCODED["not sorted"]):
        pytest.skip("slower, and the same reader")
    lut = tmp_path / "lut.tsv"
    lut.write_bytes(content)
    assert entry(atlas, lut, tmp_path / "out.tsv") == NAMED


@pytest.mark.parametrize("entry", ENTRIES)
def test_freesurfers_colour_tables(atlas, tmp_path, entry):
    lut = tmp_path / "FreeSurferColorLUT.txt"
    lut.write_text(FREESURFER)
    assert entry(atlas, lut, tmp_path / "out.tsv") == ("L-WM", "Hippo", "ctx_lof")


@pytest.mark.parametrize("entry", [by_regions, by_masker])
@pytest.mark.parametrize(
    "lut",
    [
        dict(PAIRS),
        {str(k): n for k, n in PAIRS},
        pd.DataFrame({"index": LABELS, "name": NAMED}),
        pd.DataFrame({"Index": LABELS, "Label": NAMED}),
        pd.DataFrame({"name": NAMED}, index=pd.Index(LABELS, name="index")),
        pd.DataFrame({"index": [*LABELS, 17], "name": [*NAMED, "Hippo"]}),
        pd.DataFrame({"index": LABELS[::-1], "name": NAMED[::-1]}),
    ],
    ids=["dict", "dict of text", "frame", "AtlasPack", "frame's index", "a row twice", "not sorted"],
)
def test_tables_in_memory_name_the_right_regions(atlas, tmp_path, lut, entry):
    assert entry(atlas, lut, tmp_path / "out.tsv") == NAMED


@pytest.mark.some(6)
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("name", ["n/a", "", "N/A", '""'])
def test_labels_without_a_name_go_by_their_number(atlas, tmp_path, name, entry):
    lut = tmp_path / "lut.tsv"
    lut.write_text(_named(("index", "name"), names=("L-WM", name, name)))
    assert entry(atlas, lut, tmp_path / "out.tsv") == ("L-WM", "17", "1012")


@pytest.mark.parametrize("entry", [by_regions, by_masker])
@pytest.mark.parametrize("nothing", [None, np.nan, pd.NA])
def test_labels_without_a_name_in_memory(atlas, tmp_path, nothing, entry):
    lut = pd.DataFrame({"index": LABELS, "name": ["L-WM", nothing, nothing]})
    assert entry(atlas, lut, tmp_path / "out.tsv") == ("L-WM", "17", "1012")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (_lines(("1", "a", "1"), ("2", "b", "2")).encode(), "no header, and 3 columns: expected are"),
        (
            _lines(("index", "Name", "name", "NAME"), ("1", "a", "b", "c")).encode(),
            "the column name more than",
        ),
        ("index\tname\n1\tdr\xe9\n".encode("latin-1"), "byte 15 is not UTF-8 text: save the file as UTF-8"),
        (TABLES["BIDS"].encode("utf-16-le"), "zero bytes"),
        (b'index\tname\n1\t"a\n2\tb\n', "a quotation mark opens a cell and does not close it"),
        (b"index\tname\n\ta\n", "the index '' is not an integer"),
        (b"index\tname\n1_0\ta\n", "the index '1_0' is not an integer"),
        (b"index name\n1 Left Insula\n", "the row '1 . Left . Insula' has more cells than the header"),
        (b"index\tname\n1\t17\ta\n2\t18\tb\n", "the row '1 . 17 . a' has more cells"),
        (b"index,name\n1,a\n2,b, left\n", "the row '2 . b . left' has more cells"),
    ],
)
@pytest.mark.parametrize("entry", [by_regions, by_masker])
def test_what_is_not_plain_is_refused_with_what_was_expected(atlas, tmp_path, content, problem, entry):
    lut = tmp_path / "lut.tsv"
    lut.write_bytes(content)
    with pytest.raises(errors.MaskError, match=problem) as caught:
        entry(atlas, lut, tmp_path / "out.tsv")
    assert str(lut) in str(caught.value) and "\n" not in str(caught.value)


def test_a_masker_keeps_the_other_columns(atlas, tmp_path):
    lut = tmp_path / "lut.tsv"
    lut.write_text(_lines(("index", "name", "color"), ("17", "Hippo", "#ff0"), ("2", "L-WM", "#fff")))
    masker = SharedLabelsMasker(atlas, lut=lut, reports=False, standardize=None).fit()
    assert masker.lut_.set_index("index")["color"].loc[[2, 17]].tolist() == ["#fff", "#ff0"]
    assert masker.lut == lut


# ---- atlases as nilearn's fetchers give them


@pytest.fixture
def fetched(tmp_path):
    """A run, and a Bunch of each kind that ``fetch_atlas_...`` give."""
    names = [f"7Networks_LH_Vis_{number}" for number in (1, 2, 3)]
    table = pd.DataFrame({"index": range(4), "name": ["Background", *names], "color": ["#000000"] * 4})
    numbers = np.arange(np.prod(RUN_SHAPE)).reshape(RUN_SHAPE) % 4
    path = save(tmp_path / "atlas.nii.gz", numbers.astype("i2"))
    maps = np.stack([(numbers == number) * 0.5 for number in (1, 2, 3)], -1).astype("f4")
    facts = {"description": "An atlas.", "template": "MNI152NLin6Asym", "networks": None}
    labels = {"labels": ["Background", *names], "lut": table, **facts, "atlas_type": "deterministic"}
    return save(tmp_path / "bold.nii.gz", bold(seed=3), t_r=2.0), {
        "a path": Bunch(maps=str(path), **labels),
        "an image": Bunch(maps=nib.load(path), filename=str(path), **labels),
        "no table": Bunch(maps=str(path), labels=labels["labels"]),
        "maps": Bunch(maps=str(save(tmp_path / "maps.nii.gz", maps)), labels=names, lut=None, **facts),
    }


def held(call):
    def calling(run, atlas):
        with SharedImage(run) as image:
            return call(image, atlas)

    return calling


OF_ATLASES = {
    "from_labels": lambda run, atlas: Regions.from_labels(atlas).indices,
    "extract": lambda run, atlas: extract(run, atlas, strategy="mean"),
    "extract_many": lambda run, atlas: extract_many([run], atlas, strategy="sum").results[str(run)],
    "reduce": held(lambda image, atlas: image.reduce(atlas, "median")),
    "connectivity": held(lambda image, atlas: image.connectivity(atlas)),
    "seed_maps": held(lambda image, atlas: image.seed_maps(atlas).get_fdata()),
}
OF_MAPS = {
    "from_maps": lambda run, atlas: Regions.from_maps(atlas).weights,
    "extract": lambda run, atlas: extract(run, atlas, strategy="weighted_mean"),
    "reduce": held(lambda image, atlas: image.reduce(atlas, "weighted_mean")),
}


@pytest.mark.parametrize("kind", ["a path", "an image", "no table"])
@pytest.mark.parametrize("entry", OF_ATLASES)
def test_a_fetched_atlas_is_the_image_in_it(fetched, kind, entry):
    run, atlases = fetched
    of = OF_ATLASES[entry]
    np.testing.assert_array_equal(of(run, atlases[kind]), of(run, atlases["a path"].maps))


@pytest.mark.parametrize("entry", OF_MAPS)
def test_fetched_maps_are_the_image_in_them(fetched, entry):
    run, atlases = fetched
    of = OF_MAPS[entry]
    np.testing.assert_array_equal(of(run, atlases["maps"]), of(run, atlases["maps"].maps))


def test_a_fetched_atlas_has_its_names(fetched):
    _, atlases = fetched
    names = tuple(atlases["a path"].lut["name"][1:])
    assert Regions.from_labels(atlases["a path"]).names == names
    assert Regions.from_labels(atlases["an image"], lut={1: "own"}).names == ("own", "2", "3")
    assert Regions.from_labels(atlases["no table"]).names == ("1", "2", "3")
    assert Regions.from_atlas_or_masks(atlases["a path"]).names == names
    with pytest.warns(errors.SharedMaskWarning, match="more than two values"):
        assert len(Regions.from_any(atlases["a path"])) == 1


def test_a_dict_with_a_mask_called_maps_is_one_of_masks(fetched):
    run, atlases = fetched
    with pytest.warns(errors.SharedMaskWarning, match="more than two values"):
        assert list(extract(run, {"maps": atlases["a path"].maps})) == ["maps"]
