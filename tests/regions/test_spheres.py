"""Voxels of spheres are nilearn's."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nilearn.maskers.nifti_spheres_masker import apply_mask_and_get_affinity

from sharedmask import Grid
from sharedmask.errors import EmptyMaskError
from sharedmask.regions.spheres import spheres

AFFINES = [
    np.eye(4),
    np.diag([2.0, 3.0, 2.5, 1]),
    np.array([[-2.0, 0, 0, 7], [0, 2, 0, -3.5], [0, 0, 2, -4], [0, 0, 0, 1]]),
    np.array([[0.4, 0.3, 0, 1], [-0.3, 0.4, 0.1, 0], [0, -0.1, 0.5, -1], [0, 0, 0, 1.0]]),
]


SHAPE = (7, 6, 5)


def nilearns_voxels(seeds, radius, affine, inside):
    """Numbers as ours, in nilearn's order."""
    mask = nib.Nifti1Image(inside.astype("u1"), affine)
    image = nib.Nifti1Image(np.zeros((*inside.shape, 1), "f4"), affine)
    _, graph = apply_mask_and_get_affinity(seeds, image, radius, True, mask_img=mask)
    coordinates = np.array(np.nonzero(inside))
    return [np.ravel_multi_index(tuple(coordinates[:, row]), inside.shape, order="F") for row in graph.rows]


@settings(max_examples=60)
@given(
    affine=st.sampled_from(AFFINES),
    place=st.tuples(*[st.integers(0, n - 1) for n in SHAPE]),
    shift=st.tuples(*[st.sampled_from([-1.3, -0.5, -0.2, 0.0, 0.1, 0.5, 0.9])] * 3),
    radius=st.sampled_from([None, 0.0, 0.5, 1.0, 2.0, 3.1, 8.0]),
    seed=st.integers(0, 3),
)
def test_the_voxels_are_nilearns(affine, place, shift, radius, seed):
    inside = np.random.default_rng(seed).random(SHAPE) < 0.8 if seed else np.ones(SHAPE, bool)
    point = (affine @ [*place, 1])[:3] + shift
    try:
        expected = nilearns_voxels([point.tolist()], radius, affine, inside)
    except ValueError as error:
        with pytest.raises(EmptyMaskError) as raised:
            spheres([point], radius, Grid(SHAPE, affine), inside)
        assert str(raised.value) == str(error)
        return
    found = spheres([point], radius, Grid(SHAPE, affine), inside)
    np.testing.assert_array_equal(found[0], expected[0])
