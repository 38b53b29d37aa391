"""Voxels of spheres are nilearn's."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nilearn.maskers.nifti_spheres_masker import apply_mask_and_get_affinity

from sharedmask import Grid
from sharedmask.errors import EmptyMaskError, MaskError, ParameterError
from sharedmask.regions.spheres import Seeds, spheres

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


def test_seeds_are_those_that_are_written_down(tmp_path):
    table = tmp_path / "seeds.tsv"
    table.write_text("x\ty\tz\tr\tlabel\n2\t2\t2\t1.5\tpcc\n-1\t3\t1\tn/a\t\n")
    seeds = Seeds.of([str(table), "1,1,1", "3, 2,2.5,2"])
    assert seeds.points == ((2, 2, 2), (-1, 3, 1), (1, 1, 1), (3, 2, 2.5))
    assert seeds.radii == (1.5, None, None, 2.0)
    assert seeds.names == ("pcc", "-1,3,1", "1,1,1", "3,2,2.5")
    grid = Grid((6, 6, 6), np.array([[1.0, 0, 0, -2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    found = seeds.on(grid)
    assert found.names == seeds.names
    for one, voxels in zip(spheres(seeds.points, seeds.radii, grid), found, strict=True):
        np.testing.assert_array_equal(one, voxels)


@pytest.mark.parametrize("given", ["1,2", "1,2,3,4,5", "a,b,c", "1,2,nan", "1,2,3,-4", "none.tsv"])
def test_what_is_no_sphere_is_named(given):
    with pytest.raises(ParameterError, match=f"{given} is no sphere: give x,y,z,radius"):
        Seeds.of([given])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\tb\n1\t2\n", "it has no columns x, y and z"),
        ("x\ty\tz\n1\t2\tn/a\n", r"seeds\.tsv: 1,2,, is no sphere"),
    ],
)
def test_a_table_that_has_no_spheres_is_named(tmp_path, text, said):
    (tmp_path / "seeds.tsv").write_text(text)
    with pytest.raises(MaskError, match=said):
        Seeds.of([str(tmp_path / "seeds.tsv")])


@pytest.mark.parametrize("radius", [-1, -0.5, np.nan, np.inf, "3", [2.0, -1.0], [None, np.nan]])
def test_what_is_no_radius_is_refused(radius):
    with pytest.raises(ParameterError, match="is no radius of a sphere"):
        spheres([(0, 0, 0), (2, 2, 2)], radius, Grid((4, 4, 4), np.eye(4)))
