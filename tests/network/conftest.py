"""A connectome with constant voxels, and lesions of many sizes."""

import nibabel as nib
import numpy as np
import pytest
from networks import METHODS, SIZES, STRAIGHT, half_step, lesion, series, write


@pytest.fixture(scope="module")
def data():
    data = series()
    data[:, :, 7] = 0.1  # constant in all subjects
    data[2, :, 9] = 3.3  # constant in one
    return data


@pytest.fixture(scope="module")
def connectome(data, tmp_path_factory):
    return write(tmp_path_factory.mktemp("connectome") / "c.h5", data)


@pytest.fixture(scope="module")
def lesions():
    return {f"l{i}": lesion(i, n_voxels) for i, n_voxels in enumerate(SIZES)}


@pytest.fixture(scope="module", params=METHODS)
def method(request):
    return request.param


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """A connectome whose affine is exact in any arithmetic, a lesion, and the lesion on a finer grid."""
    path = write(tmp_path_factory.mktemp("straight") / "c.h5", data, affine=STRAIGHT)
    image, _ = lesion(2, 40, affine=STRAIGHT)
    fine = nib.Nifti1Image(np.asarray(image.dataobj).repeat(2, axis=0), STRAIGHT @ half_step())
    return path, image, fine
