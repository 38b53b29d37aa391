"""Maskers of surfaces have nilearn's numbers; those of grayordinates the same in their manner."""

import cifti_files as files
import nibabel as nib
import numpy as np
import pytest
from images import same_bits, sent
from nilearn.maskers import SurfaceLabelsMasker, SurfaceMapsMasker, SurfaceMasker
from nilearn.surface import InMemoryMesh, PolyMesh, SurfaceImage
from sklearn.base import clone

from sharedmask import (
    SharedCiftiLabelsMasker,
    SharedCiftiMasker,
    SharedImage,
    SharedSurfaceLabelsMasker,
    SharedSurfaceMapsMasker,
    SharedSurfaceMasker,
)
from sharedmask.errors import EmptyMaskError, SharedMaskWarning

T = 50
RNG = np.random.default_rng(0)
HEMISPHERE = InMemoryMesh(RNG.normal(size=(20, 3)), np.array([[0, 1, 2]]))
MESH = PolyMesh(left=HEMISPHERE, right=HEMISPHERE)


def surface(values):
    return SurfaceImage(MESH, {"left": values[:20], "right": values[20:]})


BOLD = surface(RNG.normal(100, 10, (40, T)).astype("f4"))
LABELS = surface(np.arange(40) % 4)
MASK = surface(np.arange(40) % 3 > 0)
MAPS = surface(RNG.normal(size=(40, 3)).astype("f4"))
CONFOUNDS = RNG.normal(size=(T, 2))
del RNG
CLEANING = [
    {"standardize": None},
    {"standardize": "zscore_sample", "detrend": True},
    {"standardize": "psc", "low_pass": 0.1, "high_pass": 0.01, "t_r": 2.0},
    {"standardize": None, "clean_args": {"filter": "cosine"}, "high_pass": 0.01, "t_r": 2.0},
]
PAIRS = [
    (SharedSurfaceMasker, SurfaceMasker, {"mask_img": MASK}),
    (SharedSurfaceMasker, SurfaceMasker, {}),
    (SharedSurfaceLabelsMasker, SurfaceLabelsMasker, {"labels_img": LABELS}),
    (SharedSurfaceLabelsMasker, SurfaceLabelsMasker, {"labels_img": LABELS, "strategy": "variance"}),
    (SharedSurfaceMapsMasker, SurfaceMapsMasker, {"maps_img": MAPS}),
    (SharedSurfaceMapsMasker, SurfaceMapsMasker, {"maps_img": MAPS, "mask_img": MASK}),
]


@pytest.mark.parametrize(("ours", "theirs", "given"), PAIRS)
@pytest.mark.parametrize("cleaning", CLEANING)
def test_signals_are_nilearn_s(ours, theirs, given, cleaning):
    fitted = theirs(**given, **cleaning).fit(None if given else BOLD)
    expected = fitted.transform(BOLD, confounds=CONFOUNDS)
    masker = clone(ours(**given, **cleaning))
    got = masker.fit(None if given else BOLD).transform(BOLD, confounds=CONFOUNDS)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert masker.n_elements_ == got.shape[1]
    back = masker.inverse_transform(got[:2])
    assert back.shape == (40, 2)


def test_confounds_of_high_variance_are_nilearn_s():
    how = {"standardize": None, "high_variance_confounds": True}
    expected = SurfaceMasker(mask_img=MASK, **how).fit().transform(BOLD)
    got = SharedSurfaceMasker(MASK, **how).fit().transform(BOLD)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_one_map_gives_one_row():
    one = surface(np.arange(40.0))
    expected = SurfaceLabelsMasker(LABELS, standardize=None).fit().transform(one)
    one = surface(np.arange(40.0))  # nilearn has given the other an axis
    got = SharedSurfaceLabelsMasker(LABELS, standardize=None).fit().transform(one)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected)


@pytest.fixture
def path(tmp_path):
    return files.dtseries(tmp_path / "run.dtseries.nii", T)


def test_parcels_of_grayordinates(tmp_path, path):
    values = np.array([1, 1, 0, 2, 2, 2, 0, 1, 3, 3, 0, 0, 2, 0, 1])
    atlas = files.save(tmp_path / "a.dlabel.nii", values[None].astype("f4"), files.labels(), files.models())
    masker = SharedCiftiLabelsMasker(atlas, standardize=None, t_r=0.8).fit()
    assert (masker.labels_, masker.region_names_) == ([1, 2, 3], {0: "V1", 1: "A1", 2: "M1"})
    true = files.truth(path)
    means = np.stack([true[:, values == k].astype(float).mean(axis=1) for k in (1, 2, 3)], axis=1)
    signals = masker.transform(path)
    np.testing.assert_allclose(signals, means, rtol=1e-6)
    with SharedImage(path, store="file") as image:
        same_bits(masker.transform(image), signals)
        same_bits(masker.transform(sent(image)), signals)
    dense = masker.inverse_transform(signals)
    assert dense.header.get_axis(1) == files.models()
    np.testing.assert_array_equal(dense.get_fdata()[:, values == 2], np.repeat(signals[:, 1:2], 4, axis=1))
    assert list(masker.to_cifti(signals).header.get_axis(1).name) == ["V1", "A1", "M1"]
    cut = SharedCiftiLabelsMasker(atlas, mask_img="CortexLeft", standardize=None).fit(path)
    assert cut.region_names_ == {0: "V1", 1: "A1"}


@pytest.mark.parametrize(("t_r", "fitted", "step"), [(None, True, 0.8), (2.0, True, 2.0), (None, False, 0.0)])
def test_what_is_made_of_signals_has_the_repetition_time_of_the_image(t_r, fitted, step, path, tmp_path):
    numbers = (np.arange(15) % 4)[None].astype("f4")
    atlas = files.save(tmp_path / "a.dlabel.nii", numbers, files.labels(), files.models())
    masker = SharedCiftiLabelsMasker(atlas, standardize=None, t_r=t_r).fit(path if fitted else None)
    signals = masker.transform(path)
    for image in (masker.inverse_transform(signals), masker.to_cifti(signals)):
        assert image.header.get_axis(0).step == step
    if fitted:
        masker = SharedCiftiMasker("CortexLeft", standardize=None, t_r=t_r).fit(path)
        image = masker.inverse_transform(masker.transform(path))
        assert image.header.get_axis(0).step == step


@pytest.mark.parametrize(("ours", "theirs", "given"), PAIRS)
def test_a_masker_of_surface_images_takes_files_and_shared_images(ours, theirs, given, tmp_path):
    paths = []
    for path, values in zip(("L", "R"), BOLD.data.parts.values(), strict=True):
        arrays = [nib.gifti.GiftiDataArray(one, "NIFTI_INTENT_TIME_SERIES") for one in values.T]
        paths.append(str(tmp_path / f"hemi-{path}_bold.func.gii"))
        nib.save(nib.GiftiImage(darrays=arrays), paths[-1])
    masker = ours(**given, standardize="zscore_sample").fit(None if given else BOLD)
    expected = masker.transform(BOLD)
    same_bits(expected, theirs(**given, standardize="zscore_sample").fit_transform(BOLD))
    with SharedImage(paths) as image:
        for one in (paths, image, sent(image)):
            np.testing.assert_allclose(masker.transform(one), expected, rtol=1e-4, atol=1e-4)
    assert isinstance(masker.inverse_transform(expected), SurfaceImage)
    frame = masker.set_output(transform="pandas").transform(paths)
    assert list(frame.columns) == list(masker.get_feature_names_out())


# --- images that lack what was fitted ------------------------------------------------------------

ATLAS = np.array(
    [1, 2, 2, 1, 1, 1, 3, 3, 1, 0, 1, 1, 0, 1, 1]
)  # region 2 is in two vertices, 3 in one or two


def lacking(path, vertices=(0, 4, 7, 8, 11), *, turned=False):
    """A run without the vertices of region 2, its structures also in another order."""
    parts = [files.surface(vertices=vertices), files.surface("CortexRight", (1, 2, 5)), files.voxels()]
    parts.append(files.voxels("BrainStem", (0,)))
    parts = parts[::-1] if turned else parts
    places = parts[0] + parts[1] + parts[2] + parts[3]
    return files.save(path, files.values(len(places), T), files.series(T), places)


def file_of(tmp_path):
    return files.save(tmp_path / "a.dlabel.nii", ATLAS[None].astype("f4"), files.labels(), files.models())


ATLASES = {"file": file_of, "array": lambda _: ATLAS}
SENT = {"path": str, "held": SharedImage, "nibabel": nib.load}


@pytest.mark.shares
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", SENT)
@pytest.mark.parametrize("ours", [SharedCiftiLabelsMasker, SharedSurfaceLabelsMasker])
@pytest.mark.parametrize(
    "asked", [{}, {"mask_img": "CortexLeft"}, {"labels": ["a", "b", "c"]}], ids=["all", "masked", "named"]
)
@pytest.mark.parametrize("atlas", ATLASES)
def test_a_region_that_an_image_lacks_keeps_its_column(atlas, asked, ours, kind, turned, path, tmp_path):
    vertices = (0, 4, 7, 8, 11)
    other = lacking(tmp_path / "other.dtseries.nii", vertices, turned=turned)
    masker = ours(ATLASES[atlas](tmp_path), standardize="zscore_sample", **asked).fit(path)
    names = list(masker.region_names_.values())
    image = SENT[kind](other)
    with pytest.warns(SharedMaskWarning, match=rf"other.dtseries.nii.* of region '{names[1]}'"):
        signals = masker.transform(image)
    assert signals.shape == (T, len(names)) == (T, masker.n_elements_)
    np.testing.assert_array_equal(np.isnan(signals).all(axis=0), [name == names[1] for name in names])
    assert np.isfinite(np.delete(signals, 1, axis=1)).all()
    assert list(masker.to_cifti(signals).header.get_axis(1).name) == names
    dense = masker.inverse_transform(signals).get_fdata()
    for number, label in enumerate((1, 2, 3)[: len(names)]):
        inside = (label == ATLAS) & (np.arange(15) < (7 if "mask_img" in asked else 15))
        np.testing.assert_array_equal(dense[:, inside], np.repeat(signals[:, [number]], inside.sum(), axis=1))
    if kind == "held":
        image.close()


@pytest.mark.shares
@pytest.mark.parametrize("kind", SENT)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("ours", [SharedCiftiMasker, SharedSurfaceMasker])
def test_an_element_that_an_image_lacks_keeps_its_column(ours, turned, kind, path, tmp_path):
    other = lacking(tmp_path / "other.dtseries.nii", turned=turned)
    masker = ours(standardize=None).fit(path)
    image = SENT[kind](other)
    with pytest.warns(SharedMaskWarning, match=r"other.dtseries.nii.* of 2 of the 15 elements"):
        signals = masker.transform(image)
    whole = nib.load(other)
    places, values = whole.header.get_axis(1), whole.get_fdata().T
    true = {tuple(map(str, one)): row for one, row in zip(places, values, strict=True)}
    for column, one in zip(signals.T, files.models(), strict=True):
        np.testing.assert_array_equal(column, true.get(tuple(map(str, one)), np.full(T, np.nan)))
    assert masker.inverse_transform(signals).shape == (T, 15)
    if kind == "held":
        image.close()


@pytest.mark.parametrize("atlas", ATLASES)
def test_an_image_that_has_nothing_of_what_was_fitted_is_refused(atlas, path, tmp_path):
    other = lacking(tmp_path / "other.dtseries.nii")
    given = np.where(ATLAS == 2, 2, 0)
    if atlas == "file":
        given = files.save(
            tmp_path / "a.dlabel.nii", given[None].astype("f4"), files.labels(), files.models()
        )
    with pytest.raises(EmptyMaskError):
        SharedCiftiLabelsMasker(given).fit(path).transform(other)
