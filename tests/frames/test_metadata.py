"""What is known of frames besides their voxels: refused, carried along."""

import nibabel as nib
import numpy as np
import pytest
from frame_cases import N
from images import AFFINE, SHAPE

from sharedmask import FrameDataset
from sharedmask.errors import (
    EmptyMaskError,
    ParameterError,
)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"affines": np.zeros((3, 4, 4))}, r"motion_affines has shape \(3, 4, 4\) where \(12, 4, 4\)"),
        ({"affines": "moved"}, "motion_affines is no array of numbers"),
        ({"per_frame": {"time": np.arange(5)}}, r"time has shape \(5,\): .* the 12 frames"),
        ({"per_frame": {"dataobj": np.arange(N)}}, "'dataobj' is no name"),
        ({"per_frame": {"_x": np.arange(N)}}, "'_x' is no name"),
        ({"per_frame": {"a/b": np.arange(N)}}, "'a/b' is no name"),
        ({"per_frame": {"kind": ["b0"] * N}}, "kind holds <U2 values"),
        ({"overall": {"note": "text"}}, "note holds <U4 values"),
    ],
)
def test_wrong_fields_are_refused(run, fields, said):
    with pytest.raises(ParameterError, match=said):
        FrameDataset(run, **fields)


def test_the_mask_is_carried_along(run):
    brain = np.zeros(SHAPE, bool)
    brain[1:4, 2:, 1] = True
    with FrameDataset(run, mask_img=nib.Nifti1Image(brain.astype("u1"), AFFINE)) as ds:
        np.testing.assert_array_equal(ds.brainmask, brain)
        assert ds.select([1, 2]).brainmask is not None
    with pytest.raises(EmptyMaskError):
        FrameDataset(run, mask_img=np.zeros(SHAPE, bool))
