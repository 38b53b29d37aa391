"""NIfTI files written frame by frame."""

import pytest
from images import bold, same_bits
from nfdh5_files import nifreezes

from sharedmask import FrameDataset
from sharedmask.errors import ParameterError


def test_what_nifti_cannot_hold_is_refused(tmp_path):
    path = nifreezes(tmp_path / "run.h5", bold().astype("f2"))
    with FrameDataset(path) as ds:
        same_bits(ds[3][0], bold()[..., 3].astype("f2"))
        with pytest.raises(ParameterError, match="NIfTI cannot hold float16"):
            ds.to_nifti(tmp_path / "run.nii")
