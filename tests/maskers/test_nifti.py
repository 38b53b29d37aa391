"""The masker of voxels: masks that it computes, images that it takes, where they are kept."""

import pickle

import numpy as np
import pytest
from drop_ins import MASK, plain
from nilearn.maskers import NiftiMasker

from sharedmask import (
    SharedImage,
    SharedNiftiMasker,
)
from sharedmask.sources import loader


def test_a_mask_is_computed_from_a_shared_image(path):
    with SharedImage(path) as image:
        ours = plain(SharedNiftiMasker, {}).fit(image)
        signals = plain(SharedNiftiMasker, {}).fit_transform(image)
    nilearns = plain(NiftiMasker, {}).fit(path)
    np.testing.assert_array_equal(ours.mask_img_.get_fdata(), nilearns.mask_img_.get_fdata())
    np.testing.assert_array_equal(signals, nilearns.transform(path))
    assert len(pickle.dumps(ours)) < 50_000  # the volume that reports show is its own


def test_a_cache_is_used(path, tmp_path, monkeypatch):
    masker = plain(SharedNiftiMasker, {"mask_img": MASK}, memory=str(tmp_path / "cache")).fit()
    first = masker.transform(path)
    monkeypatch.setattr(loader, "load", lambda *_, **__: pytest.fail("loaded"))
    np.testing.assert_array_equal(masker.transform(str(path)), first)
