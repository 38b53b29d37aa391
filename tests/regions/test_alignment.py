"""An image resampled to its masks, by every request."""

from functools import partial

import numpy as np
import pytest
from images import AFFINE, SHAPE, bold, niimg, random_masks, same_bits, save, truth
from small_runs import every_worker, refused

from sharedmask import SharedImage, extract
from sharedmask.errors import (
    MemoryLimitError,
    OutsideImageError,
)


@pytest.fixture
def finer(tmp_path):
    """Masks on a grid of half the voxel size."""
    affine = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    shape = (12, 11, 9)
    found = {key: mask.astype("u1") for key, mask in zip("abc", random_masks(3, shape), strict=True)}
    return {key: save(tmp_path / f"finer-{key}.nii.gz", mask, affine=affine) for key, mask in found.items()}


@every_worker
@pytest.mark.parametrize("cleaning", [{}, {"standardize": "zscore_sample"}], ids=str)
def test_an_image_is_resampled_to_its_masks(workers, cleaning, path, shared, finer):
    expected = extract(path, finer, resampling_target="mask", **cleaning, **workers)
    for key, signals in shared.mask_parallel(finer, resampling_target="mask", **cleaning, **workers).items():
        assert signals.shape == (12, np.count_nonzero(truth(finer[key])))
        same_bits(signals, expected[key])


def test_every_request_resamples(scaled_path, finer):
    with SharedImage(scaled_path) as opened:
        signals = opened.mask_parallel(finer, resampling_target="mask")
        mean = np.stack([one.mean(axis=1) for one in signals.values()], axis=1)
        for target in ("mask", "labels"):
            np.testing.assert_allclose(opened.reduce(finer, resampling_target=target), mean, rtol=1e-12)
        for key, found in opened.map(np.mean, finer, resampling_target="mask").items():
            np.testing.assert_allclose(found, signals[key].mean(), rtol=1e-12)
        in_one_batch = dict(opened.iter_masks(finer, resampling_target="mask"))
        for key, one in signals.items():
            same_bits(in_one_batch[key], one)
        alone = opened.mask(finer["b"], resampling_target="mask")
        same_bits(next(opened.iter_masks([finer["b"]], resampling_target="mask"))[1], alone)
        same_bits(alone, extract(scaled_path, finer["b"], resampling_target="mask"))


def test_part_of_an_image_is_not_resampled(path, brain, masks, finer, tmp_path):
    flipped = save(tmp_path / "flipped.nii", masks["a"][::-1].astype("u1"), AFFINE @ flip_of_x())
    with SharedImage(path, mask_img=brain) as opened:
        said = refused(OutsideImageError, opened.mask, finer["a"], resampling_target="mask")
        assert "holds the voxels of its mask_img only: smoothing and resampling need all" in said
        assert opened.mask(flipped, resampling_target="mask").shape == (12, masks["a"].sum())


def flip_of_x():
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    return flip


def test_resampling_needs_room(tmp_path):
    path = save(tmp_path / "run.nii", bold((40, 40, 40, 60)))
    fine = niimg(np.ones((60, 60, 60), "u1"), AFFINE @ np.diag([0.5, 0.5, 0.5, 1]))
    with SharedImage(path, memory_limit="30M") as opened:
        streaming = partial(extract, path, memory_limit="30M")
        for call in (opened.mask, opened.reduce, partial(opened.map, np.mean), streaming):
            assert "run.nii" in refused(MemoryLimitError, call, fine, resampling_target="mask")
        assert opened.mask(np.eye(40)[:, :, None] * np.ones(40)).shape == (60, 1600)
