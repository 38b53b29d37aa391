"""NIfTI files written frame by frame."""

import nibabel as nib
import numpy as np
import pytest
from command import called
from images import bold, same_bits, save, truth
from nfdh5_files import nifreezes

from sharedmask import FrameDataset
from sharedmask.errors import ParameterError
from sharedmask.frames.convert import convert


def test_what_nifti_cannot_hold_is_refused(tmp_path):
    path = nifreezes(tmp_path / "run.h5", bold().astype("f2"))
    with FrameDataset(path) as ds:
        same_bits(ds[3][0], bold()[..., 3].astype("f2"))
        with pytest.raises(ParameterError, match="NIfTI cannot hold float16"):
            ds.to_nifti(tmp_path / "run.nii")


def whole(source, target):
    with FrameDataset(source, store="private") as ds:
        ds.to_nifti(target)


def chosen(source, target):
    with FrameDataset(source, store="private") as ds:
        ds.select(slice(None)).to_nifti(target)


def by_way_of_hdf5(source, target):
    with FrameDataset(source, store="private") as ds:
        h5 = ds.to_filename(target.with_name("between.h5"))
    whole(h5, target)


def converted_hdf5(source, target):
    convert(source, target.with_name("between.h5"))
    convert(target.with_name("between.h5"), target)


def on_the_command_line(source, target):
    assert called("frames", "convert", source, target).returncode == 0


@pytest.mark.parametrize("name", ["new.nii", "new.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(("dtype", "slope"), [(">i2", None), (">f4", None), (">f8", None), (">u2", 0.5)])
@pytest.mark.parametrize(
    "written", [whole, chosen, by_way_of_hdf5, convert, converted_hdf5, on_the_command_line]
)
def test_values_have_the_byte_order_of_their_header(tmp_path, written, dtype, slope, kind, name):
    source = save(tmp_path / "run.nii", bold(dtype=dtype), kind=kind, slope=slope)
    written(source, tmp_path / name)
    np.testing.assert_array_equal(truth(tmp_path / name), truth(source))
    with FrameDataset(tmp_path / name, store="private") as ds:
        same_bits(np.asarray(ds), truth(source))
