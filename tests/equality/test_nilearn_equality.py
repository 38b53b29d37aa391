"""Our maskers beside nilearn's: the same numbers, dtypes, shapes, layouts, errors and warnings.

Covers: generated cases (``masker_cases``), bad input one by one, the deliberate differences, each
with a test that says so. Does not cover: scikit-learn's and nilearn's own checks.
"""

import itertools
import random
import warnings
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import masker_cases as cases
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from images import AFFINE, niimg

import sharedmask

OURS = {"nifti": "SharedNiftiMasker", "labels": "SharedLabelsMasker", "maps": "SharedMapsMasker"}
THEIRS = {"nifti": "NiftiMasker", "labels": "NiftiLabelsMasker", "maps": "NiftiMapsMasker"}
FITTED = {
    "nifti": ("n_elements_", "mask_img_", "affine_"),
    "labels": ("n_elements_", "mask_img_", "labels_img_", "labels_", "region_ids_", "region_names_", "lut_"),
    "maps": ("n_elements_", "mask_img_", "maps_img_"),
}
TOLERANCE = 1e-6
# nilearn solves for float32 maps in float32, and cleaning magnifies the last digit.
FLOAT32_MAPS, FLOAT32_MAPS_CLEANED = 1e-5, 1e-4
TOGETHER = 1e-5  # float32 columns cleaned among others: sums in another order
ROUNDING = 1e-12  # of the largest value: a column of less is one of zeros
LISTS = ("list of paths", "list of images", "glob")
PROMISED = (UserWarning, RuntimeWarning, FutureWarning)


def ours(kind):
    return getattr(sharedmask, OURS[kind])


def theirs(kind):
    import nilearn.maskers

    return getattr(nilearn.maskers, THEIRS[kind])


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    return cases.Files(tmp_path_factory.mktemp("runs"))


# ---- what one of the two does


@dataclass
class Outcome:
    """What a masker made of its input: signals, or an error."""

    masker: Any = None
    signals: Any = None
    error: Exception | None = None
    warned: list[type[Warning]] = field(default_factory=list)


def outcome(masker_class, given):
    found = Outcome()
    with warnings.catch_warnings(record=True) as warned, given.closing:
        warnings.simplefilter("always")
        try:
            found.masker = masker_class(**given.constructor)
            found.signals = _signals(found.masker, given)
        except Exception as error:
            found.error = error
    found.warned = [one.category for one in warned if _is_promised(one)]
    return found


def _is_promised(warning):
    """Whether nilearn says it, and not numpy of what nilearn happens to compute."""
    return issubclass(warning.category, PROMISED) and " encountered in " not in str(warning.message)


def _signals(masker, given):
    if given.how == "pandas":
        masker.set_output(transform="pandas")
    if given.how in ("fit_transform", "pandas"):
        return masker.fit_transform(given.imgs, **given.call)
    return getattr(masker.fit(), given.how)(given.imgs, **given.call)


# ---- where two outcomes differ


def differences(kind, ours, theirs, tolerance=TOLERANCE):
    """What is not as nilearn has it, in words."""
    if ours.error is not None or theirs.error is not None:
        return _of_errors(ours.error, theirs.error)
    return [
        *_of_signals(ours.signals, theirs.signals, tolerance),
        *_of_warnings(ours.warned, theirs.warned),
        *itertools.chain(*(_of_attribute(name, ours.masker, theirs.masker) for name in FITTED[kind])),
    ]


def _of_errors(ours, theirs):
    if theirs is None:
        return [f"raised {ours!r}"]
    return [] if isinstance(ours, type(theirs)) else [f"raised {ours!r} where nilearn raises {theirs!r}"]


def _of_signals(ours, theirs, tolerance):
    if isinstance(theirs, pd.DataFrame):
        if list(ours.columns) != [_our_column(name) for name in theirs.columns]:
            return [f"columns {list(ours.columns)} for {list(theirs.columns)}"]
        ours, theirs = ours.to_numpy(), theirs.to_numpy()
    else:
        layout = ours.flags.c_contiguous, ours.flags.writeable
        if layout != (theirs.flags.c_contiguous, theirs.flags.writeable):
            return [f"(contiguous, writeable) is {layout}"]
    dtype = theirs.dtype.newbyteorder("=")
    if (ours.shape, ours.dtype) != (theirs.shape, dtype):
        return [f"{ours.shape} {ours.dtype} for {theirs.shape} {dtype}"]
    return _of_values(ours, theirs, tolerance)


def _our_column(name):
    """Columns are named after the class."""
    return f"shared{name}" if name.startswith("niftimasker") else name.replace("nifti", "shared", 1)


def _of_values(ours, theirs, tolerance):
    if np.array_equal(ours, theirs, equal_nan=True):
        return []
    finite = np.isfinite(theirs)
    if not np.array_equal(np.isfinite(ours), finite):
        return ["non-finite values elsewhere"]
    off = np.max(abs(np.where(finite, ours, 0) - np.where(finite, theirs, 0)), axis=0)
    size = np.max(abs(np.where(finite, theirs, 0)), axis=0)
    wrong = off > tolerance * np.maximum(size, ROUNDING * np.max(size))
    return [f"{np.sum(wrong)} columns are off, by up to {np.max(off):.1e}"] if np.any(wrong) else []


def _of_warnings(ours, theirs):
    missing = {one.__name__ for one in theirs if not any(issubclass(own, one) for own in ours)}
    surplus = {own.__name__ for own in ours if not any(issubclass(own, one) for one in theirs)}
    return [f"warnings missing {missing}, surplus {surplus}"] if missing or surplus else []


def _of_attribute(name, ours, theirs):
    found, expected = getattr(ours, name, None), getattr(theirs, name, None)
    return [] if _is_same(found, expected) else [f"{name} is {found!r} for {expected!r}"]


def _is_same(found, expected):
    if isinstance(expected, nib.spatialimages.SpatialImage):
        return np.array_equal(found.affine, expected.affine) and np.array_equal(
            np.asanyarray(found.dataobj), np.asanyarray(expected.dataobj)
        )
    if isinstance(expected, pd.DataFrame):
        return found.equals(expected)
    return type(found) is type(expected) and np.all(found == expected)


def disagreement(kind, row, files):
    """The row and what differs; None if nothing does."""
    of_ours = outcome(ours(kind), cases.given(kind, row, files, ours=True))
    of_theirs = outcome(theirs(kind), cases.given(kind, row, files, ours=False))
    found = differences(kind, of_ours, of_theirs, tolerance_of(kind, row))
    return f"{kind} {row}: {'; '.join(found)}" if found else None


def tolerance_of(kind, row):
    """Of each column's largest value; 0 where voxels are copied."""
    if kind == "nifti" and is_copied(row):
        return 0
    double = row.get("maps") == "float64" or "64" in row["encoding"] or "scaled" in row["encoding"]
    if kind == "maps" and not double:
        return FLOAT32_MAPS if is_copied(row | {"grid": "same"}) else FLOAT32_MAPS_CLEANED
    return TOLERANCE


def is_copied(row):
    """Whether no arithmetic is done."""
    untouched = {"smoothing_fwhm": (None, 0), "standardize": (None, False), "target": ("none",)}
    untouched |= {"grid": ("same", "nearly the same"), "filter": ("none",), "confounds": ("none",)}
    untouched |= {"detrend": (False,), "high_variance_confounds": (False,)}
    return all(row[name] in levels for name, levels in untouched.items() if name in row)


def assert_no_disagreement(kind, rows, files):
    found = [wrong for row in rows if (wrong := disagreement(kind, row, files))]
    assert not found, f"{len(found)} of {len(rows)} cases:\n" + "\n".join(found)


# ---- generated cases


def comparable(row):
    """Whether the row asks for nothing that is different on purpose (see below)."""
    scaled = "scaled" in row["encoding"]
    if scaled and (row["source"] in LISTS or row["dtype"] == "auto"):
        return False
    if "strategy" in row and row["encoding"] == "big-endian float32":
        return False
    return row.get("target") != "of the image"


def telling(row):
    """Whether, moreover, no level makes an error that hides what the others do."""
    if row.get("runs") and (row.get("shape", "4D") != "4D" or row.get("sample_mask", "none") != "none"):
        return False
    if row.get("allow_overlap") is False and row["maps"] != "disjoint":
        return False
    if row.get("mask") == "none" and row.get("resampling_target") == "mask":
        return False
    on_grid = row.get("grid") in ("same", "nearly the same") and row.get("mask") != "other grid"
    return comparable(row) and (on_grid or row.get("resampling_target", "data") is not None)


DESIGNS = {
    ("nifti", "encoded"): cases.ENCODED | cases.NIFTI,
    ("nifti", "cleaned"): cases.CLEANING | {"runs": (False, True)},
    ("nifti", "volumes"): cases.VOLUMES,
    ("labels", "encoded"): cases.ENCODED | cases.ATLAS,
    ("labels", "cleaned"): cases.CLEANING | {"strategy": cases.ATLAS["strategy"]},
    ("maps", "encoded"): cases.ENCODED | cases.MAPS,
    ("maps", "cleaned"): cases.CLEANING,
}


@cache
def rows_of(kind, design):
    return cases.covering(DESIGNS[kind, design], telling)


def _by_source():
    for kind, design in DESIGNS:
        for source in DESIGNS[kind, design]["source"]:
            yield pytest.param(kind, design, source, id=f"{kind}-{design}-{source}")


@pytest.mark.long
@pytest.mark.parametrize(("kind", "design", "source"), list(_by_source()))
def test_all_pairs_of_levels_agree_with_nilearn(kind, design, source, files):
    rows = [row for row in rows_of(kind, design) if row["source"] == source]
    assert_no_disagreement(kind, rows, files)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kind", "design"), list(DESIGNS))
@pytest.mark.parametrize("seed", range(5))
def test_random_cases_agree_with_nilearn(kind, design, seed, files):
    rng = random.Random(seed)
    factors = DESIGNS[kind, design]
    rows = [row for _ in range(600) if comparable(row := cases.random_row(factors, rng))]
    assert_no_disagreement(kind, rows, files)


# ---- many masks, one image


CONTAINERS = {
    "list": lambda masks: list(masks.values()),
    "dict": dict,
    "single": lambda masks: masks["uint8"],
}
MULTI = {
    "source": (".nii.gz as text", "in memory", "SharedImage"),
    "encoding": ("int16", "int16, scaled", "float64", "not finite"),
    "shape": ("4D", "3D"),
    "grid": ("same", "coarser"),
    "container": tuple(CONTAINERS),
    "standardize": (None, "zscore_sample", "psc"),
    "detrend": (False, True),
    "high_variance_confounds": (False, True),
    "filter": ("none", "band", "cosine"),
    "confounds": ("none", "array"),
    "sample_mask": ("none", "indices"),
    "smoothing_fwhm": (None, 5.0),
    "dtype": (None, "auto"),
}


def _masks_of(row):
    return {name: cases.on_grid(cases.MASKS[name], row) for name in ("uint8", "one voxel", "labels")}


def _by_multi(row, files):
    made = cases.given("nifti", row, files, ours=True)
    del made.constructor["mask_img"]
    made.constructor["masks"] = CONTAINERS[row["container"]](_masks_of(row))
    return outcome(sharedmask.SharedMultiMasker, made)


def _by_loop(row, files):
    found = {}
    for name, mask in _masks_of(row).items():
        made = cases.given("nifti", row, files, ours=False)
        made.constructor["mask_img"] = mask
        found[name] = outcome(theirs("nifti"), made)
    return found


def _multi_differences(row, files):
    of_ours, of_theirs = _by_multi(row, files), _by_loop(row, files)
    if of_ours.error or of_theirs["uint8"].error:
        return _of_errors(of_ours.error, of_theirs["uint8"].error)
    # One voxel of one volume is a number for nilearn; here it is an array as for any other mask.
    signals = {name: np.atleast_1d(one.signals) for name, one in of_theirs.items()}
    expected = CONTAINERS[row["container"]](signals)
    tolerance = TOGETHER if tolerance_of("nifti", row) else 0
    if row["container"] == "single":
        return _of_signals(of_ours.signals, expected, tolerance)
    if row["container"] == "dict":
        assert list(of_ours.signals) == list(expected)
        of_ours.signals, expected = list(of_ours.signals.values()), list(expected.values())
    pairs = zip(of_ours.signals, expected, strict=True)
    return [text for pair in pairs for text in _of_signals(*pair, tolerance)]


def _as_a_loop(row):
    """Whether a loop of maskers does the same, and one volume is asked for nothing that takes several.

    nilearn smooths what it has resampled to the box of the mask: there it matters which mask it is.
    """
    cleaned = (row["filter"], row["confounds"], row["sample_mask"]) != ("none", "none", "none")
    return not (row["shape"] == "3D" and cleaned) and not (row["grid"] != "same" and row["smoothing_fwhm"])


@pytest.mark.some(1)
@pytest.mark.parametrize("source", MULTI["source"])
def test_many_masks_at_once_are_as_a_loop_of_nilearns(source, files):
    rows = cases.covering(MULTI, lambda row: telling(row) and _as_a_loop(row))
    rows = [row for row in rows if row["source"] == source]
    found = [f"{row}: {wrong}" for row in rows if (wrong := _multi_differences(row, files))]
    assert not found, f"{len(found)} of {len(rows)} cases:\n" + "\n".join(found)


# ---- bad input: the same class of error, and the fact that matters in the message

RUN = {"encoding": "int16", "source": ".nii"}
OTHER_AFFINE = AFFINE + np.eye(4)[3] * [[1], [0], [0], [0]]


def _missing(folder):
    return folder / "missing.nii"


def _not_an_image(folder):
    (folder / "text.nii").write_text("no image" * 99)
    return folder / "text.nii"


def _truncated(folder, suffix=".nii"):
    whole = cases.Files(folder).run("int16", "4D", suffix)
    whole.write_bytes(whole.read_bytes()[:-2000])
    return whole


def _image(*shape, affine=AFFINE):
    return nib.Nifti1Image(np.ones(shape, "f4"), affine)


@dataclass(frozen=True)
class Bad:
    """One wrong thing; ``said`` is what both messages name."""

    name: str
    said: str
    kind: str = "nifti"
    imgs: Any = None
    constructor: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)


def _bad_imgs():
    yield Bad("an array", "ndarray", imgs=lambda _: np.ones((*cases.BOX, 4)))
    yield Bad("a number", "int", imgs=lambda _: 3)
    yield Bad("None", "none", imgs=lambda _: None)
    yield Bad("a file that is not there", "missing.nii", imgs=_missing)
    yield Bad("a pattern of no file", "none*.nii", imgs=lambda folder: str(folder / "none*.nii"))
    yield Bad("an empty list", "", imgs=lambda _: [])
    yield Bad("no voxels", "empty", imgs=lambda _: _image(0, 3, 3, 4))
    yield Bad("a plane", "2D", imgs=lambda _: _image(4, 4))
    yield Bad("five axes", "5D", imgs=lambda _: _image(*cases.BOX, 2, 2))
    yield Bad("a list of runs", "4D", imgs=lambda _: [_image(*cases.BOX, 2)] * 2)
    yield Bad(
        "a list on two grids",
        "#1",
        imgs=lambda _: [_image(*cases.BOX), _image(*cases.BOX, affine=OTHER_AFFINE)],
    )
    yield Bad("text", "text.nii", imgs=_not_an_image)
    yield Bad("a truncated file", "bytes", imgs=_truncated)


def _bad_masks():
    yield Bad("the mask an array", "ndarray", constructor={"mask_img": np.ones(cases.BOX)})
    yield Bad("the mask not there", "missing.nii", constructor={"mask_img": "missing.nii"})
    yield Bad("an empty mask", "empty", constructor={"mask_img": niimg(np.zeros(cases.BOX, "u1"))})
    yield Bad("target_shape alone", "target_affine", constructor={"target_shape": (3, 3, 3)})
    yield Bad("mask_strategy", "zz", constructor={"mask_img": None, "mask_strategy": "zz"})


def _bad_parameters():
    for name, value in {
        "detrend": "yes",
        "t_r": "2",
        "smoothing_fwhm": [4.0],
        "memory": 3,
        "memory_level": "1",
        "verbose": "loud",
        "standardize_confounds": 1,
        "low_pass": "0.1",
    }.items():
        for kind in OURS:
            yield Bad(f"{name} of {kind}", name, kind, constructor={name: value})
    yield Bad("smoothing 'fast'", "smoothing_fwhm", constructor={"smoothing_fwhm": "fast"})
    yield Bad("standardize", "'zscore'", constructor={"standardize": "zscore"})
    for kind in OURS:
        yield Bad(f"dtype bool of {kind}", "bool", kind, constructor={"dtype": bool})
        yield Bad(f"dtype of {kind}", "foo", kind, constructor={"dtype": "foo"})
    yield Bad("memory in a folder that is not there", "nowhere", constructor={"memory": "nowhere/at/all"})


def _bad_cleaning():
    cosine = {"filter": "cosine"}
    yield Bad("a filter without t_r", "t_r", constructor={"high_pass": 0.01})
    yield Bad("drifts without t_r", "t_r", constructor={"high_pass": 0.01, "clean_args": cosine})
    yield Bad("drifts without high_pass", "high_pass", constructor={"t_r": 2.0, "clean_args": cosine})
    yield Bad(
        "high_pass above low_pass",
        "0.2",
        constructor={"high_pass": 0.2, "low_pass": 0.1, "t_r": 2.0},
    )
    yield Bad(
        "too short for the filter",
        "padlen",
        imgs=lambda _: _image(*cases.BOX, 9),
        constructor={"low_pass": 0.1, "t_r": 2.0},
    )
    yield Bad("an argument twice", "detrend", constructor={"clean_args": {"detrend": True}})
    yield Bad("runs of another length", "10", constructor={"runs": np.zeros(10)})
    yield Bad("confounds of another length", "13", call={"confounds": np.ones((13, 2))})
    yield Bad("confounds of another kind", "dict", call={"confounds": {"a": 1}})
    yield Bad("confounds with NaN", "nan", call={"confounds": np.full((cases.N_VOLUMES, 1), np.nan)})


def _bad_sample_masks():
    yield Bad("a negative volume", "negative", call={"sample_mask": np.array([-1, 2])})
    yield Bad("a volume beyond the end", "99", call={"sample_mask": np.array([1, 99])})
    yield Bad("the volume after the last", str(cases.N_VOLUMES), call={"sample_mask": np.arange(1, 41)})
    yield Bad("more than there are", "41", call={"sample_mask": np.arange(41)})
    yield Bad("no volume", "", call={"sample_mask": np.array([], int)})
    yield Bad("numbers in a list", "", call={"sample_mask": [1, 2, 3]})


def _bad_regions():
    atlas = niimg(cases.atlas(cases.BOX))
    far = niimg(cases.atlas(cases.BOX), cases.GRIDS["half a voxel off"][1])
    labels_of = {"labels": ["two", "three", "seven", "forty"], "lut": cases.names_table()}
    free = niimg((cases.atlas(cases.BOX) == 0).astype("u1"))
    for name, said, constructor in [
        ("strategy", "foo", {"strategy": "foo"}),
        ("resampling_target", "foo", {"resampling_target": "foo"}),
        ("another grid, not resampled", "affine", {"labels_img": far, "resampling_target": None}),
        (
            "a mask on another grid, not resampled",
            "affine",
            {"mask_img": niimg(cases.MASKS["uint8"](cases.BOX), far.affine), "resampling_target": None},
        ),
        ("labels and lut", "lut", labels_of),
        ("an atlas without labels", "label", {"labels_img": niimg(np.zeros(cases.BOX, "i2"))}),
        ("an atlas of four axes", "4D", {"labels_img": niimg(np.ones((*cases.BOX, 2), "i2"))}),
        ("no atlas", "none", {"labels_img": None}),
        ("nothing left by the mask", "label", {"mask_img": free}),
    ]:
        yield Bad(f"labels: {name}", said, "labels", constructor={"labels_img": atlas} | constructor)
    for name, said, constructor in [
        ("resampling_target", "foo", {"resampling_target": "foo"}),
        ("overlap", "overlap", {"allow_overlap": False}),
        ("no mask to resample to", "mask", {"resampling_target": "mask"}),
    ]:
        yield Bad(f"maps: {name}", said, "maps", constructor=constructor)


BAD = [
    *itertools.chain(
        _bad_imgs(), _bad_masks(), _bad_parameters(), _bad_cleaning(), _bad_sample_masks(), _bad_regions()
    )
]


def _given_badly(bad, files, folder):
    made = cases.given(bad.kind, RUN, files, ours=False)
    made.constructor |= {"standardize": None} | bad.constructor
    made.call |= bad.call
    if bad.imgs is not None:
        made.imgs = bad.imgs(folder)
    return made


@pytest.mark.some(40)
@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_input_is_refused_as_nilearn_refuses_it(bad, files, tmp_path):
    of_theirs = outcome(theirs(bad.kind), _given_badly(bad, files, tmp_path))
    of_ours = outcome(ours(bad.kind), _given_badly(bad, files, tmp_path))
    assert of_theirs.error is not None
    assert isinstance(of_ours.error, type(of_theirs.error)), of_ours.error
    assert bad.said.lower() in str(of_ours.error).lower()


@pytest.mark.parametrize("kind", OURS)
def test_use_before_fit_is_refused_as_nilearn_refuses_it(kind, files):
    from sklearn.exceptions import NotFittedError

    made = cases.given(kind, RUN, files, ours=True)
    masker = ours(kind)(**made.constructor)
    for use in (masker.transform, masker.transform_single_imgs, masker.inverse_transform):
        with pytest.raises(NotFittedError, match=f"This {OURS[kind]} instance is not fitted yet"):
            use(made.imgs)


def test_no_mask_and_no_image_is_refused():
    with pytest.raises(ValueError, match="imgs"):
        ours("nifti")().fit()


# ---- back to images, and state


@pytest.mark.parametrize("encoding", ["int16", "float32", "int16, scaled"])
@pytest.mark.parametrize("shape", ["4D", "3D"])
@pytest.mark.parametrize("kind", OURS)
def test_inverse_transform_gives_nilearns_image(kind, shape, encoding, files):
    row = {"encoding": encoding, "source": ".nii", "shape": shape, "standardize": None}
    images = []
    for side in (ours, theirs):
        made = cases.given(kind, row, files, ours=True)
        masker = side(kind)(**made.constructor)
        images.append(masker.fit().inverse_transform(masker.transform(made.imgs)))
    assert images[0].get_data_dtype() == images[1].get_data_dtype()
    assert np.array_equal(images[0].affine, images[1].affine)
    np.testing.assert_allclose(*(image.get_fdata() for image in images), rtol=TOLERANCE, atol=1e-9)


@pytest.mark.parametrize("kind", OURS)
def test_inverse_transform_refuses_another_width(kind, files):
    made = cases.given(kind, RUN, files, ours=True)
    masker = ours(kind)(**made.constructor).fit()
    with pytest.raises(ValueError, match=r"wrong shape.\nExpected \(4, \d+\).\nGot \(4, \d+\)"):
        masker.inverse_transform(np.ones((4, masker.n_elements_ + 1)))


@pytest.mark.parametrize("kind", OURS)
def test_several_images_in_turn_leave_no_trace(kind, files):
    """What a masker has transformed before changes nothing."""
    made = cases.given(kind, {"standardize": None, **RUN}, files, ours=True)
    masker = ours(kind)(**made.constructor).fit()
    first = masker.transform(made.imgs)
    masker.transform(files.run("float64", "one volume"))
    again = masker.transform(made.imgs)
    assert np.array_equal(first, again) and not np.shares_memory(first, again)


@pytest.mark.parametrize("kind", OURS)
def test_a_shared_image_is_gathered_from_and_not_loaded_again(kind, files, monkeypatch):
    from sharedmask import SharedImage
    from sharedmask.sources import loader

    made = cases.given(kind, {"standardize": None, **RUN}, files, ours=False)
    expected = ours(kind)(**made.constructor).fit_transform(made.imgs)
    with SharedImage(made.imgs) as image:
        image.load()
        monkeypatch.setattr(loader, "load", lambda *_, **__: pytest.fail("it was loaded again"))
        signals = ours(kind)(**made.constructor).fit_transform(image)
        assert not image.closed
    assert np.array_equal(signals, expected)


# ---- inside of nilearn's models


@pytest.mark.filterwarnings("ignore")
def test_a_first_level_model_uses_the_fitted_masker_and_a_decoder_rebuilds_it(files):
    from nilearn.decoding import Decoder
    from nilearn.glm.first_level import FirstLevelModel

    made = cases.given("nifti", RUN, files, ours=True)
    design = pd.DataFrame(np.random.default_rng(8).normal(size=(cases.N_VOLUMES, 2)), columns=["a", "b"])
    maps, models = [], []
    for side in (ours, theirs):
        model = FirstLevelModel(mask_img=side("nifti")(**made.constructor).fit())
        models.append(model.fit(made.imgs, design_matrices=design))
        maps.append(model.compute_contrast("a").get_fdata())
    assert type(models[0].masker_) is ours("nifti")
    assert np.array_equal(*maps)
    decoder = Decoder(mask=ours("nifti")(**made.constructor).fit(), cv=2, screening_percentile=100)
    decoder.fit(made.imgs, np.arange(cases.N_VOLUMES) % 2)
    assert type(decoder.masker_) is theirs("nifti")


# ---- different on purpose


def _with_nan():
    values = np.ones((*cases.BOX, 4), "f4")
    values[2, 2, 2] = np.nan
    return nib.Nifti1Image(values, AFFINE)


@pytest.mark.filterwarnings("ignore:Non-finite values detected", "ignore:After applying mask to the labels")
@pytest.mark.parametrize("kind", OURS)
def test_differs_the_callers_image_and_mask_keep_their_values(kind, files):
    image = _with_nan()
    mask = niimg(cases.MASKS["with NaN"](cases.BOX))
    made = cases.given(kind, RUN, files, ours=False)
    signals = ours(kind)(**made.constructor | {"mask_img": mask, "standardize": None}).fit_transform(image)
    assert np.isfinite(signals).all()
    assert np.isnan(image.dataobj[2, 2, 2]).all()
    assert np.isnan(mask.dataobj[0, 0, :2]).all()


@pytest.mark.parametrize(
    "parameters",
    [{"smoothing_fwhm": 5.0}, {"high_variance_confounds": True}, {"target_affine": AFFINE * 1.5}, {}],
    ids=lambda parameters: next(iter(parameters), "none"),
)
@pytest.mark.filterwarnings("ignore:imgs are being resampled", "ignore:Casting data from int16")
def test_differs_the_callers_image_is_not_left_in_memory(parameters, files):
    image = nib.load(files.run("int16"))
    mask = niimg(cases.MASKS["uint8"](cases.BOX))
    ours("nifti")(mask_img=mask, standardize=None, **parameters).fit_transform(image)
    assert not image.in_memory


def test_differs_a_file_that_changed_is_not_taken_from_the_cache(tmp_path):
    path, mask = tmp_path / "run.nii", niimg(cases.MASKS["uint8"](cases.BOX))
    means = []
    for value in (1, 2):
        nib.save(niimg(np.full((*cases.BOX, 4), value, "i2")), path)
        masker = ours("nifti")(mask_img=mask, memory=str(tmp_path / "cache"), standardize=None)
        means.append(masker.fit_transform(path).mean())
    assert means == [1, 2]


@pytest.mark.parametrize("kind", OURS)
def test_differs_unknown_clean_args_are_refused(kind, files):
    made = cases.given(kind, RUN, files, ours=True)
    masker = ours(kind)(**made.constructor | {"clean_args": {"filtre": "cosine"}, "standardize": None})
    with pytest.raises((ValueError, TypeError), match="filtre"):
        masker.fit_transform(made.imgs)


def test_differs_analyze_images_and_pairs_are_accepted(files, tmp_path):
    values = np.asanyarray(nib.load(files.run("int16")).dataobj)
    mask = niimg(cases.MASKS["uint8"](cases.BOX))
    for kind, suffix in ((nib.Nifti1Pair, ".hdr"), (nib.Nifti1Pair, ".img"), (nib.Spm99AnalyzeImage, ".hdr")):
        nib.save(kind(values, AFFINE), tmp_path / "run.img")
        signals = ours("nifti")(mask_img=mask, standardize=None).fit_transform(tmp_path / f"run{suffix}")
        assert np.array_equal(signals, values[np.asanyarray(mask.dataobj) != 0].T)


@pytest.mark.parametrize("kind", OURS)
def test_differs_complex_images_are_refused(kind, files, tmp_path):
    made = cases.given(kind, RUN, files, ours=True)
    nib.save(nib.Nifti1Image(np.ones((*cases.BOX, 3), "c8"), AFFINE), tmp_path / "complex.nii")
    with pytest.raises(ValueError, match="complex"):
        ours(kind)(**made.constructor | {"standardize": None}).fit().transform(tmp_path / "complex.nii")


def test_differs_a_truncated_gz_is_an_oserror_as_a_truncated_file_is(files, tmp_path):
    """nilearn passes on an EOFError of gzip for one, and an OSError for the other."""
    made = cases.given("nifti", RUN, files, ours=True)
    path = _truncated(tmp_path, ".nii.gz")
    with pytest.raises(OSError, match=f"{path.name} is truncated"):
        ours("nifti")(**made.constructor | {"standardize": None}).fit_transform(path)


def test_differs_the_byte_order_is_native(files):
    made = cases.given("nifti", RUN | {"encoding": "big-endian float32", "standardize": None}, files, True)
    assert theirs("nifti")(**made.constructor).fit_transform(made.imgs).dtype == np.dtype(">f4")
    assert ours("nifti")(**made.constructor).fit_transform(made.imgs).dtype.isnative


def test_differs_the_images_own_affine_as_target(files):
    """nilearn resamples to a box that is one voxel too wide, and then misses the mask's shape."""
    row = {"encoding": "float32", "source": ".nii", "target": "of the image", "standardize": None}
    made = cases.given("nifti", row, files, ours=True)
    assert isinstance(outcome(theirs("nifti"), made).error, ValueError)
    signals = ours("nifti")(**made.constructor).fit_transform(made.imgs)
    assert np.array_equal(
        signals, theirs("nifti")(made.constructor["mask_img"], standardize=None).fit_transform(made.imgs)
    )


def test_differs_dtype_auto_of_scaled_values(files):
    """nilearn looks for the kind of a type that has none."""
    row = {"encoding": "int16, scaled", "source": ".nii", "dtype": "auto", "standardize": None}
    made = cases.given("nifti", row, files, ours=True)
    assert isinstance(outcome(theirs("nifti"), made).error, AttributeError)
    assert ours("nifti")(**made.constructor).fit_transform(made.imgs).dtype == np.float32


def test_differs_regions_of_big_endian_float32_are_those_of_native(files):
    """nilearn takes it for another type than float32, and reduces it to float64."""
    row = {"encoding": "big-endian float32", "source": ".nii", "standardize": None}
    made = cases.given("labels", row, files, ours=True)
    expected = theirs("labels")(**made.constructor).fit_transform(files.run("float32"))
    found = ours("labels")(**made.constructor).fit_transform(made.imgs)
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE)
    assert found.dtype.kind == "f" and found.dtype.isnative


@pytest.mark.parametrize("source", LISTS)
def test_differs_scaled_volumes_of_a_list_are_not_truncated(source, files):
    """nilearn puts them together in the stored dtype of the first."""
    row = {"encoding": "int16, scaled", "source": source, "standardize": None}
    made = cases.given("nifti", row, files, ours=True)
    expected = theirs("nifti")(**made.constructor).fit_transform(files.run("int16, scaled"))
    assert np.array_equal(ours("nifti")(**made.constructor).fit_transform(made.imgs), expected)


# ---- the real run


@pytest.mark.long
@pytest.mark.realdata
@pytest.mark.filterwarnings("ignore:.*labels were removed:UserWarning")
@pytest.mark.parametrize("parcels", [400, 1000])
def test_schaefer_parcels_of_the_real_run(parcels, real_data):
    run = real_data / "sub-RAPIDTIDETEST.nii.gz"
    atlas = real_data / f"sub-RAPIDTIDETEST_atlas-Schaefer{parcels}_dseg.nii.gz"
    cleaned = {
        "standardize": "zscore_sample",
        "detrend": True,
        "low_pass": 0.1,
        "high_pass": 0.01,
        "t_r": 1.5,
    }
    found = []
    for side in (ours, theirs):
        masker = side("labels")(atlas, **cleaned)
        found.append(Outcome(masker, masker.fit_transform(run)))
    assert differences("labels", *found) == []
    assert found[0].signals.shape == (260, 400 if parcels == 400 else 994)
