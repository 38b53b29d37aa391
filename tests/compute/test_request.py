"""Parameters that make sense, and one clear refusal of each that does not."""

import json
import warnings

import numpy as np
import pytest
from images import SHAPE, bold, niimg, save

from sharedmask import Grid, Regions, SharedImage, extract, extract_many
from sharedmask.compute.request import Request
from sharedmask.errors import EmptyMaskError, MissingFileError, ParameterError, SharedMaskWarning
from sharedmask.sources.opening import open_source

N = 12
TABLE = np.random.default_rng(0).normal(size=(N, 3))

REGIONS = Regions.from_any(np.ones((2, 2, 2), bool), Grid((2, 2, 2), np.eye(4)))


@pytest.fixture
def source(path):
    return open_source(path)


def of_dtype(dtype, t_r=2.0, n_timepoints=12):
    return open_source(niimg(bold((*SHAPE, n_timepoints), dtype=dtype), t_r=t_r))


def cleaning(source, **parameters):
    return Request.checked(source, REGIONS, **parameters).cleaning


def refusal(source, **parameters):
    with pytest.raises(ParameterError) as caught:
        Request.checked(source, REGIONS, **parameters)
    return str(caught.value)


# ---- regions

CUT = Regions(REGIONS.grid, [0, 3, 5], [0, 2, 2, 3, 3], ("a", "b", "c", "d"), (1, 2, 3, 4), "dict")
"""As ``within`` leaves them: a first, a middle or the last without voxels."""


@pytest.fixture
def two():
    return niimg(bold((2, 2, 2, N)), affine=np.eye(4))


EVERY = {
    "extract": lambda image, regions, **asked: extract(image, regions, **asked),
    "image": lambda image, regions, strategy=None: held(image, regions, strategy),
    "many": lambda image, regions, **asked: raised(image, regions, **asked),
    "batches": lambda image, regions, strategy=None: extract(image, regions, on_batch=list),
    "map": lambda image, regions, strategy=None: held(image, regions, None, "map", np.sum),
    "connectivity": lambda image, regions, strategy=None: held(image, regions, None, "connectivity"),
}


def held(image, regions, strategy, call="mask_parallel", *given):
    with SharedImage(image) as opened:
        return opened.reduce(regions, strategy) if strategy else getattr(opened, call)(*given, regions)


def raised(image, regions, **asked):
    failed = {}
    extract_many({"a": image}, regions, on_error=failed.__setitem__, **asked)
    raise failed["a"]


@pytest.mark.parametrize("strategy", [None, "mean", "sum", "minimum", "median", "pc1", ["mean", "variance"]])
@pytest.mark.parametrize("way", EVERY)
def test_regions_without_voxels_are_refused(way, strategy, two):
    with pytest.raises(EmptyMaskError, match=r"region b has no voxels, as have 1 more: .*without_empty"):
        EVERY[way](two, CUT, strategy=strategy)
    with pytest.raises(EmptyMaskError, match="there is no region"):
        EVERY[way](two, CUT.picked([1]).without_empty(), strategy=strategy)


@pytest.mark.parametrize("strategy", ["mean", None])
@pytest.mark.parametrize("last", ["b", "c"])
def test_one_region_without_voxels_is_named(strategy, last, two):
    number = "abcd".index(last)
    with pytest.raises(EmptyMaskError, match=r"region b has no voxels: "):
        extract(two, CUT.part(0, number + 1), strategy=strategy)


# ---- one at a time


@pytest.mark.parametrize(
    "wrong",
    [
        {"prefer": "fork"},
        {"prefer": True},
        {"nan_policy": "ignore"},
        {"standardize": "zscore"},
        {"standardize": "yes"},
        {"standardize": 1},
        {"detrend": "no"},
        {"detrend": 1},
        {"low_pass": "0.1", "t_r": 2.0},
        {"high_pass": [0.1], "t_r": 2.0},
        {"t_r": "2", "low_pass": 0.1},
        {"low_pass": True, "t_r": 2.0},
        {"on_result": 1},
        {"function": "mean"},
        {"n_jobs": 0},
        {"n_jobs": "2"},
        {"n_jobs": 1.5},
        {"dtype": "float33"},
        {"dtype": "complex64"},
        {"dtype": "U4"},
        {"dtype": bool},
        {"t_r": -2.0, "low_pass": 0.1},
        {"t_r": 0, "low_pass": 0.1},
        {"low_pass": -0.1, "t_r": 2.0},
        {"low_pass": 0.05, "high_pass": 0.1, "t_r": 2.0},
    ],
    ids=str,
)
def test_refused(wrong, source):
    said = refusal(source, **wrong)
    name, value = next(iter(wrong.items()))
    assert name in said
    assert getattr(value, "__name__", str(value)) in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("n_jobs", "effective"), [(None, 1), (1, 1), (7, 7), (np.int64(3), 3)], ids=["None", "1", "7", "numpy's"]
)
def test_jobs(n_jobs, effective, source):
    assert Request.checked(source, REGIONS, n_jobs=n_jobs).n_jobs == effective


def test_unknown_parameters_are_refused(source):
    with pytest.raises(TypeError, match="there is no parameter 'smoothing'; there are confounds, detrend,"):
        Request.checked(source, REGIONS, smoothing=6)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, None),
        (False, None),
        (True, "zscore_sample"),
        (np.True_, "zscore_sample"),
        ("zscore_sample", "zscore_sample"),
        ("psc", "psc"),
    ],
)
def test_standardize(given, kept, source):
    assert cleaning(source, standardize=given).standardize == kept


def test_nothing_asked_for_is_no_cleaning(source):
    assert not cleaning(source).needed


# ---- dtypes


@pytest.mark.parametrize(
    ("stored", "dtype", "result"),
    [
        ("int16", "auto", "float32"),
        ("int64", "auto", "float32"),
        ("uint8", "auto", "float32"),
        ("float32", "auto", "float32"),
        ("float64", "auto", "float64"),
        ("int16", None, "int16"),
        ("float32", None, "float32"),
        ("int16", "float64", "float64"),
        ("int16", np.int32, "int32"),
        ("float64", np.dtype("f4"), "float32"),
    ],
)
def test_dtype_of_signals(stored, dtype, result):
    source = of_dtype(stored)
    assert Request.checked(source, REGIONS, dtype=dtype).conversion(source).result == result


@pytest.mark.parametrize(
    ("stored", "dtype", "result"),
    [
        ("int16", "auto", "float64"),
        ("float32", "auto", "float32"),
        ("float64", "auto", "float64"),
        ("float32", None, "float64"),
        ("int16", "float32", "float32"),
    ],
)
def test_dtype_of_reductions(stored, dtype, result):
    source = of_dtype(stored)
    assert Request.checked(source, REGIONS, dtype=dtype).reduction(source).result == result


@pytest.mark.parametrize(
    ("dtype", "result"), [("auto", "float64"), (None, "float64"), ("float32", "float32")]
)
def test_dtype_of_scaled_signals(dtype, result, tmp_path):
    source = open_source(save(tmp_path / "scaled.nii", bold(), slope=0.5))
    assert Request.checked(source, REGIONS, dtype=dtype).conversion(source).result == result


@pytest.mark.parametrize(
    ("parameters", "policy"),
    [
        ({}, "zero"),
        ({"dtype": "float64"}, "zero"),
        ({"dtype": None}, "propagate"),
        ({"dtype": None, "nan_policy": "zero"}, "zero"),
        ({"nan_policy": "propagate"}, "propagate"),
        ({"nan_policy": "raise"}, "raise"),
    ],
    ids=str,
)
def test_nan_policy_of_signals(parameters, policy, source):
    assert Request.checked(source, REGIONS, **parameters).conversion(source).nan_policy == policy


def test_signals_cannot_omit(source):
    with pytest.raises(ParameterError, match="omit"):
        Request.checked(source, REGIONS, nan_policy="omit").conversion(source)


@pytest.mark.parametrize(("given", "policy"), [(None, "zero"), ("omit", "omit"), ("propagate", "propagate")])
def test_nan_policy_of_reductions(given, policy, source):
    assert Request.checked(source, REGIONS, nan_policy=given).reduction(source).nan_policy == policy


# ---- confounds


def write_table(path, delimiter, header=None):
    lines = [delimiter.join(map(repr, row)) for row in TABLE.tolist()]
    path.write_text("\n".join([delimiter.join(header), *lines] if header else lines) + "\n")
    return path


def data_frame(table=TABLE):
    import pandas

    return pandas.DataFrame(table, columns=["x", "y", "z"])


@pytest.mark.parametrize(
    "given",
    [TABLE, data_frame(), np.asfortranarray(TABLE.astype("f4")), [TABLE], (TABLE,)],
    ids=["array", "frame", "float32", "list of one", "tuple of one"],
)
def test_confounds(given, source):
    np.testing.assert_allclose(cleaning(source, confounds=given).confounds, TABLE, rtol=1e-6)


@pytest.mark.parametrize(
    "suffix_and_delimiter", [(".tsv", "\t"), (".csv", ","), (".txt", " "), (".par", "  ")]
)
@pytest.mark.parametrize("header", [None, ["trans_x", "trans_y", "global_signal"]])
@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_confounds_of_a_file(suffix_and_delimiter, header, kind, source, tmp_path):
    suffix, delimiter = suffix_and_delimiter
    path = write_table(tmp_path / f"confounds{suffix}", delimiter, header)
    np.testing.assert_array_equal(cleaning(source, confounds=kind(path)).confounds, TABLE)


@pytest.mark.parametrize("change", [lambda text: text.replace("\n", "\r\n"), lambda text: "\ufeff" + text])
def test_confounds_of_a_file_from_a_spreadsheet(change, source, tmp_path):
    path = write_table(tmp_path / "confounds.csv", ",", ["x", "y", "z"])
    path.write_bytes(change(path.read_text()).encode())
    np.testing.assert_array_equal(cleaning(source, confounds=path).confounds, TABLE)


def test_one_confound_is_a_column(source):
    np.testing.assert_array_equal(cleaning(source, confounds=TABLE[:, 0]).confounds, TABLE[:, :1])


def test_several_confounds_stand_side_by_side(source, tmp_path):
    path = write_table(tmp_path / "confounds.tsv", "\t")
    got = cleaning(source, confounds=[TABLE[:, 1], path, data_frame()]).confounds
    np.testing.assert_array_equal(got, np.hstack([TABLE[:, 1:2], TABLE, TABLE]))


@pytest.mark.parametrize("n_rows", [0, 1, N - 1, N + 1])
@pytest.mark.parametrize("kind", [np.array, data_frame])
def test_confounds_of_the_wrong_length(n_rows, kind, source):
    table = np.resize(TABLE, (n_rows, 3))
    said = refusal(source, confounds=kind(table))
    assert said == f"the confounds: {n_rows} rows for the {N} volumes of {source.name}"


def test_a_file_of_confounds_of_the_wrong_length(source, tmp_path):
    path = write_table(tmp_path / "confounds.tsv", "\t", ["x", "y", "z"])
    path.write_text(path.read_text() + "1\t2\t3\n")
    assert refusal(source, confounds=path) == f"{path}: 13 rows for the {N} volumes of {source.name}"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.array, data_frame])
def test_confounds_that_are_not_finite(value, kind, source):
    table = TABLE.copy()
    table[7, 2] = value
    said = refusal(source, confounds=kind(table))
    assert "row 7, column " + ("2" if kind is np.array else "'z'") in said
    assert said.startswith("the confounds")


@pytest.mark.parametrize("cell", ["n/a", "N/A", "", "nan", "inf"])
def test_a_file_of_confounds_that_are_not_finite(cell, source, tmp_path):
    path = write_table(tmp_path / "confounds.tsv", "\t", ["x", "y", "z"])
    lines = path.read_text().splitlines()
    lines[1] = "\t".join(["1.5", cell, "2.5"])
    path.write_text("\n".join(lines))
    said = refusal(source, confounds=path)
    assert f"{path}: no finite number in row 0, column 'y'" in said


@pytest.mark.parametrize(
    "content",
    [b"", b"x\ty\n", b"1\t2\n3\tmany\n", b"1\t2\n3\n" * 6, b"\xff\xfe\x00", b"PK\x03\x04" * 9],
    ids=["empty", "names only", "text", "ragged", "not text", "zip"],
)
def test_a_file_that_is_no_table_of_confounds(content, source, tmp_path):
    path = tmp_path / "confounds.tsv"
    path.write_bytes(content)
    assert str(path) in refusal(source, confounds=path)


def test_a_file_of_confounds_that_is_not_there(source, tmp_path):
    missing = tmp_path / "none.tsv"
    with pytest.raises(MissingFileError, match=f"^confounds {missing} does not exist"):
        Request.checked(source, REGIONS, confounds=missing)


def test_a_folder_is_no_file_of_confounds(source, tmp_path):
    assert str(tmp_path) in refusal(source, confounds=tmp_path)


@pytest.mark.parametrize(
    "given",
    [
        np.array([["a", "b"]] * N),
        [["1", "x"]] * N,
        {"x": 1},
        np.zeros((N, 2, 2)),
        3.0,
        [[1.0, 2.0], [1.0]],
        [],
    ],
    ids=["text", "lists of text", "dict", "3D", "number", "ragged", "empty list"],
)
def test_what_is_no_table_of_confounds(given, source):
    assert "confounds" in refusal(source, confounds=given)


# ---- sample masks


@pytest.mark.parametrize(
    "given",
    [
        [0, 4, 5],
        (0, 4, 5),
        np.array([0, 4, 5]),
        np.array([0, 4, 5], "u1"),
        np.isin(np.arange(N), [0, 4, 5]),
        np.isin(np.arange(N), [0, 4, 5]).tolist(),
        [np.array([0, 4, 5])],
        [[0, 4, 5]],
    ],
    ids=["list", "tuple", "array", "uint8", "booleans", "list of booleans", "list of one", "nested"],
)
def test_sample_mask(given, source):
    kept = cleaning(source, sample_mask=given).sample_mask
    assert kept.dtype == np.intp
    np.testing.assert_array_equal(kept, [0, 4, 5])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([0, N], f"asks for volume {N} of"),
        ([0, 40], "asks for volume 40 of"),
        ([-1, 3], "asks for volume -1 of"),
        (np.zeros(N, bool), f"keeps none of the {N} volumes of"),
        (np.array([], int), f"keeps none of the {N} volumes of"),
        ([], f"keeps none of the {N} volumes of"),
        (np.ones(N - 1, bool), f"has {N - 1} booleans for the {N} volumes of"),
        (np.ones(N + 1, bool), f"has {N + 1} booleans for the {N} volumes of"),
        ([0.0, 1.0], "of shape (2,) and float64 is neither"),
        ([True, None], "of shape (2,) and object is neither"),
        (["a"], "of shape (1,) and <U1 is neither"),
        ([0, 1] * N, f"asks for {2 * N} of the {N} volumes of"),
        (3, "sample_mask 3 is neither"),
        ("kept.tsv", "sample_mask 'kept.tsv' is neither"),
        (np.ones((N, 1), bool), f"of shape ({N}, 1) and bool is neither"),
        ([np.arange(3), np.arange(4)], "has parts of several lengths for the one run"),
        ([[1, 2], [3, 4]], "of shape (2, 2) and int64 is neither"),
    ],
    ids=str,
)
def test_refused_sample_masks(given, said, source):
    refused = refusal(source, sample_mask=given)
    assert refused.startswith("sample_mask")
    assert said in refused and source.name in refused


def test_a_filter_needs_two_volumes_to_interpolate_between():
    source = of_dtype("int16", n_timepoints=40)
    assert "keeps one volume of" in refusal(source, sample_mask=[3], low_pass=0.1)


def test_zeros_and_ones_are_numbers_of_volumes_as_in_nilearn_and_said_to_be(source):
    each = np.arange(N) % 2
    with pytest.warns(SharedMaskWarning, match=rf"a 0 or a 1 for each of the {N} volumes .* give booleans"):
        kept = cleaning(source, sample_mask=each).sample_mask
    np.testing.assert_array_equal(kept, each)


# ---- repetition time


def test_a_filter_takes_the_images_repetition_time():
    assert cleaning(of_dtype("int16", n_timepoints=40), low_pass=0.1).t_r == 2.0


def test_a_filter_takes_the_sidecars_repetition_time(path):
    path.with_name("sub-01_bold.json").write_text(json.dumps({"RepetitionTime": 0.8}))
    save(path, bold((*SHAPE, 40)))
    assert cleaning(open_source(path), low_pass=0.1).t_r == 0.8


def test_the_callers_repetition_time_comes_first():
    assert cleaning(of_dtype("int16", n_timepoints=40), high_pass=0.01, t_r=1.5).t_r == 1.5


@pytest.mark.parametrize("band", [{"low_pass": 0.1}, {"high_pass": 0.01}], ids=str)
def test_a_filter_needs_a_repetition_time(band):
    source = of_dtype("int16", t_r=0.0, n_timepoints=40)
    assert refusal(source, **band) == (
        f"a filter needs t_r: neither {source.name} nor a sidecar gives a repetition time"
    )


def test_without_a_filter_no_repetition_time_is_needed():
    assert cleaning(of_dtype("int16", t_r=0.0, n_timepoints=40), detrend=True).t_r is None


@pytest.mark.parametrize(
    ("asked", "needed"),
    [({"low_pass": 0.1}, 19), ({"high_pass": 0.1}, 19), ({"low_pass": 0.1, "high_pass": 0.01}, 34)],
)
def test_a_run_too_short_for_a_filter_is_refused_where_nilearn_cannot(asked, needed):
    from nilearn.signal import clean

    signals = np.random.default_rng(0).normal(size=(needed, 2))
    clean(signals, t_r=2.0, standardize=None, **asked)
    with pytest.raises(ValueError, match="padlen"):
        clean(signals[1:], t_r=2.0, standardize=None, **asked)
    assert cleaning(open_source(niimg(bold((*SHAPE, needed)))), **asked).needed
    for n_timepoints in (1, needed - 1):
        short = open_source(niimg(bold((*SHAPE, n_timepoints))))
        with pytest.raises(ParameterError, match=f"at least {needed} volumes: .* has {n_timepoints}$"):
            cleaning(short, **asked)


@pytest.mark.parametrize("t_r", [2000.0, 31.0, 0.04])
def test_an_implausible_repetition_time_is_warned_of(t_r):
    source = of_dtype("int16", t_r=t_r, n_timepoints=40)
    with pytest.warns(SharedMaskWarning) as caught:
        assert cleaning(source, low_pass=1e-9).t_r == pytest.approx(t_r)
    assert f"{source.name} gives a repetition time of {t_r:g} s" in str(caught[0].message)


@pytest.mark.parametrize(
    ("t_r", "parameters"), [(2000.0, {}), (2000.0, {"low_pass": 0.1, "t_r": 2.0}), (30.0, {"low_pass": 0.01})]
)
def test_no_warning_where_there_is_no_reason(t_r, parameters):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cleaning(of_dtype("int16", t_r=t_r, n_timepoints=40), **parameters)
