"""From an image to cleaned signals: other grids, columns cleaned some at a time."""

import warnings

import numpy as np
import pytest
from drop_ins import CONFOUNDS, MASK, T, plain
from images import AFFINE, niimg
from nilearn.image.resampling import BoundingBoxError
from nilearn.maskers import NiftiMasker

from sharedmask import SharedNiftiMasker
from sharedmask.maskers import extractors


def test_runs_are_cleaned_by_themselves(path):
    settings = {"runs": np.repeat([0, 1], T // 2), "detrend": True, "mask_img": MASK}
    expected = plain(NiftiMasker, settings).fit().transform(path)
    got = plain(SharedNiftiMasker, settings).fit().transform(path)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("standardize", ["zscore_sample", "psc"])
def test_signals_cleaned_some_columns_at_a_time_are_the_same(standardize, path, monkeypatch):
    masker = plain(SharedNiftiMasker, {"mask_img": MASK}, standardize=standardize).fit()
    for sample_mask in (None, np.arange(3, T)):
        whole = masker.transform(path, sample_mask=sample_mask)
        with monkeypatch.context() as patch:
            patch.setattr(extractors, "_CLEAN_BYTES", 7 * T * 4)
            np.testing.assert_array_equal(masker.transform(path, sample_mask=sample_mask), whole)


def test_warnings_of_cleaning_come_once(path, monkeypatch):
    monkeypatch.setattr(extractors, "_CLEAN_BYTES", 7 * T * 4)
    masker = plain(SharedNiftiMasker, {"mask_img": MASK}, standardize_confounds=False).fit()
    with pytest.warns(UserWarning, match="confounds") as told:
        masker.transform(path, confounds=CONFOUNDS)
    assert len(told) == 1


def test_a_far_away_image_is_what_it_is_to_nilearn(path):
    """All zeros on one side, refused on the other."""
    far = AFFINE.copy()
    far[:3, 3] -= 1000
    told = []
    for masker in (NiftiMasker, SharedNiftiMasker):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            signals = plain(masker, {"mask_img": niimg(np.ones((4, 4, 4), "u1"), far)}).fit().transform(path)
        assert signals.dtype == np.float32 and not signals.any()
        told.append({str(warning.message) for warning in caught})
    assert told[0] == told[1]
    far[:3, 3] += 2000
    for masker in (NiftiMasker, SharedNiftiMasker):
        with pytest.raises(BoundingBoxError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain(masker, {"mask_img": niimg(np.ones((4, 4, 4), "u1"), far)}).fit().transform(path)
