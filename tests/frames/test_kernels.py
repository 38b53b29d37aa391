"""Kernels of frames: resampling one, sums in the order of frames, least squares."""

import numpy as np
import pytest
from frame_cases import N, shift
from images import SHAPE, bold, same_bits, save, truth

from sharedmask import FrameDataset
from sharedmask.errors import (
    ParameterError,
)
from sharedmask.frames import kernels


def test_a_shift_by_a_voxel_is_exact_for_integers():
    frame = bold(dtype="int16")[..., 0]
    grid = np.diag([3.5, 3.5, 4, 1])
    moved = kernels.resample(frame, grid, shift(), 3, frame.dtype)
    same_bits(moved[:-1], frame[1:])
    high = kernels.resample(frame * 0 + np.int16(32767), grid, shift(0.3), 3, frame.dtype)
    assert high.min() >= 0


@pytest.mark.parametrize("affine", [np.eye(3), np.full((4, 4), np.nan), np.zeros((4, 4)), np.ones((4, 4))])
def test_what_is_no_affine_is_refused(run, affine):
    with FrameDataset(run) as ds, pytest.raises(ParameterError, match="affine"):
        ds.set_transform(0, affine)


@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32", "float64"])
def test_sums_are_those_of_the_frames_in_their_order(tmp_path, dtype):
    data = (bold() % 250).astype(dtype)
    with FrameDataset(save(tmp_path / "run.nii.gz", data)) as ds:
        for index, frame, training in ds.leave_one_out():
            others = np.delete(data, index, axis=3)
            expected = np.zeros(SHAPE)
            for other in np.moveaxis(others, 3, 0):
                expected += other
            same_bits(frame, data[..., index])
            same_bits(training.sum(), expected)
            same_bits(training.mean(), expected / (N - 1))
        total = np.zeros(SHAPE)
        for frame in np.moveaxis(data, 3, 0):
            total += frame
        same_bits(ds.sum(), total)


def test_a_value_that_is_not_finite_stays_in_its_fold(tmp_path):
    data = bold(dtype="float32")
    data[0, 0, 0, 2] = np.nan
    with FrameDataset(save(tmp_path / "run.nii", data)) as ds:
        finite = [np.isfinite(training.mean()).all() for _, _, training in ds.leave_one_out()]
    assert finite == [index == 2 for index in range(N)]


def test_regressions_are_least_squares(run):
    design = np.column_stack([np.ones(N), np.arange(N), np.cos(np.arange(N))])
    with FrameDataset(run) as ds:
        found = ds.regress(design)
        series = truth(run).reshape(-1, N).T.astype(float)
        expected = np.linalg.lstsq(design, series, rcond=None)[0].T.reshape(*SHAPE, 3)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        with pytest.raises(ParameterError, match=r"finite \(12, k\)"):
            ds.regress(design[:5])
