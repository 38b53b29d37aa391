"""The masker of many masks: one pass, containers, an estimator."""

import pickle

import nibabel as nib
import numpy as np
import pytest
from drop_ins import CONFOUNDS, MASK, T, plain
from images import SHAPE, niimg, random_masks, truth
from nilearn.maskers import NiftiMasker
from sklearn.base import clone

from sharedmask import (
    Regions,
    SharedImage,
    SharedMultiMasker,
)
from sharedmask.errors import (
    MaskError,
    ParameterError,
)
from sharedmask.maskers import extractors


@pytest.fixture
def masks():
    return [niimg(mask.astype("u1")) for mask in random_masks(20)]


def columns_cleaned(monkeypatch):
    """Numbers of columns that nilearn cleans from now on."""
    counts, clean = [], extractors.clean

    def counting(signals, **settings):
        counts.append(signals.shape[1])
        return clean(signals, **settings)

    monkeypatch.setattr(extractors, "clean", counting)
    return counts


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_each_voxel_of_the_union_is_cleaned_once(n_jobs, masks, path, monkeypatch):
    counts = columns_cleaned(monkeypatch)
    monkeypatch.setattr(extractors, "_CLEAN_BYTES", 50 * T * 4)
    multi = SharedMultiMasker(masks, standardize="zscore_sample", detrend=True, n_jobs=n_jobs).fit()
    signals = multi.transform(path, confounds=CONFOUNDS)
    assert sum(counts) == np.logical_or.reduce([np.asarray(mask.dataobj) for mask in masks]).sum()
    settings = {"standardize": "zscore_sample", "detrend": True}
    for mask, got in zip(masks, signals, strict=True):
        one = plain(NiftiMasker, {"mask_img": mask}, **settings).fit()
        np.testing.assert_allclose(got, one.transform(path, confounds=CONFOUNDS), atol=1e-5)


def test_many_masks_keep_their_container(masks, path, tmp_path):
    for number, mask in enumerate(masks[:3]):
        nib.save(mask, tmp_path / f"roi-{number}.nii")
    expected = [plain(NiftiMasker, {"mask_img": mask}).fit().transform(path) for mask in masks[:3]]
    named = dict(zip("abc", masks, strict=False))
    regions = Regions.from_any(named)
    for given in (masks[:3], named, regions, str(tmp_path / "roi-*.nii")):
        multi = SharedMultiMasker(given)
        for signals in (multi.fit().transform(path), multi.fit_transform(path)):
            assert isinstance(signals, list if isinstance(given, list) else dict)
            found = signals if isinstance(signals, list) else signals.values()
            for got, wanted in zip(found, expected, strict=True):
                np.testing.assert_array_equal(got, wanted)
                assert got.flags.c_contiguous and got.flags.writeable
        back = multi.inverse_transform(signals)
        for image, wanted in zip(back if isinstance(back, list) else back.values(), expected, strict=True):
            np.testing.assert_allclose(image.get_fdata().sum(), wanted.sum(), rtol=1e-5)


def test_many_masks_of_a_shared_image_and_of_one_volume(masks, path):
    multi = SharedMultiMasker(masks).fit()
    expected = multi.transform(path)
    with SharedImage(path) as image:
        for got, wanted in zip(multi.transform(image), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
    first = multi.transform(niimg(truth(path)[..., 0]))
    for got, wanted in zip(first, expected, strict=True):
        np.testing.assert_array_equal(got, wanted[0])
    assert multi.inverse_transform(first)[0].ndim == 3


def test_one_mask_is_no_list(path):
    multi = SharedMultiMasker(MASK).fit()
    expected = plain(NiftiMasker, {"mask_img": MASK}).fit().transform(path)
    np.testing.assert_array_equal(multi.transform(path), expected)
    assert multi.inverse_transform(expected).shape == (*SHAPE, T)


def test_many_masks_are_an_estimator(masks, path):
    multi = SharedMultiMasker({"a": masks[0], "b": masks[1]}, standardize="psc", n_jobs=2)
    fitted = pickle.loads(pickle.dumps(clone(multi).fit()))
    for name, signals in fitted.transform(path).items():
        np.testing.assert_array_equal(signals, multi.fit().transform(path)[name])
    names = fitted.get_feature_names_out()
    assert (
        len(names)
        == fitted.n_elements_
        == sum(signals.shape[1] for signals in fitted.transform(path).values())
    )
    assert names[0] == "a_0" and names[-1].startswith("b_")


def test_many_masks_refuse_by_name(masks, path):
    with pytest.raises(ParameterError, match="needs masks"):
        SharedMultiMasker().fit()
    with pytest.raises(ParameterError, match="'filtre'"):
        SharedMultiMasker(masks, clean_args={"filtre": 1}).fit()
    with pytest.raises(ParameterError, match="n_jobs=0"):
        SharedMultiMasker(masks, n_jobs=0).fit()
    with pytest.raises(MaskError, match="'empty' is empty"):
        SharedMultiMasker({"empty": niimg(np.zeros(SHAPE, "u1"))}).fit()
    multi = SharedMultiMasker(masks[:2]).fit()
    signals = multi.transform(path)
    with pytest.raises(ParameterError, match="signals of 2 masks"):
        multi.inverse_transform(signals[:1])
    with pytest.raises(ParameterError, match="have shape"):
        multi.inverse_transform([signals[0], signals[0][:, :3]])
