"""Masks and images on a grid that is turned and sheared, of any shape and orientation."""

from pathlib import Path

import nibabel as nib
import numpy as np
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff

SHAPE = (4, 5, 3)


OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.1, -0.2, 0.3) @ np.diag([-2.0, 2.5, 3.1]), [31.7, -64.2, -11.9]
)


NIBABEL_DATA = Path(nib.__file__).parent / "tests" / "data"


shapes = st.tuples(*[st.integers(1, 6)] * 3)


seeds = st.integers(0, 2**32 - 1)


orientations = st.tuples(st.permutations([0, 1, 2]), st.tuples(*[st.sampled_from([1, -1])] * 3)).map(
    lambda both: np.column_stack(both)
)


def rows_of(data):
    """The image as rows: one per voxel, x fastest."""
    return data.reshape(-1, data.shape[3], order="F")


def random_mask(rng, shape):
    """Never empty; C or Fortran order."""
    mask = np.asarray(rng.random(shape) < 0.5, order=rng.choice(["C", "F"]))
    mask[tuple(rng.integers(0, shape))] = True
    return mask


def image_of(data, affine=OBLIQUE):
    return nib.Nifti1Image(np.asarray(data), affine)


def save(path, data, affine=OBLIQUE):
    data = np.asarray(data)
    nib.save(nib.Nifti1Image(data.astype(np.uint8) if data.dtype == bool else data, affine), path)
    return path


def reoriented(img, ornt):
    """The same voxels in the same place, stored along other axes."""
    data = apply_orientation(np.asanyarray(img.dataobj), ornt)
    return nib.Nifti1Image(data, img.affine @ inv_ornt_aff(ornt, img.shape[:3]))
