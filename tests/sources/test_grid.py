"""Grids: where an image is, which grids are one, and how others are refused."""

import nibabel as nib
import numpy as np
import pytest
from oblique import OBLIQUE, SHAPE, image_of, reoriented

from sharedmask import errors
from sharedmask.regions.regions import Regions
from sharedmask.sources.grid import Grid


@pytest.fixture
def grid():
    return Grid(SHAPE, OBLIQUE)


@pytest.fixture
def mask():
    return np.random.default_rng(0).random(SHAPE) < 0.4


def test_grid_matches_as_numpy_does(grid):
    shifted = OBLIQUE.copy()
    shifted[0, 3] += 1e-3
    assert grid.matches(Grid(SHAPE, OBLIQUE + 1e-9))
    assert not grid.matches(Grid(SHAPE, shifted))
    assert not grid.matches(Grid((4, 5, 2), OBLIQUE))
    assert grid.n_voxels == 60
    assert not grid.affine.flags.writeable


def test_grid_does_not_follow_the_caller_s_array():
    affine = np.eye(4)
    grid = Grid((1, 1, 1), affine)
    affine[0, 0] = 7
    assert grid.affine[0, 0] == 1
    assert affine.flags.writeable


def test_grid_says_where_it_is():
    text = str(Grid((50, 59, 50), nib.affines.from_matvec(np.diag([-3, 3, 4.5]), [72, -106.25, -64])))
    assert text == (
        "50 x 59 x 50 voxels of 3 x 3 x 4.5 mm, axes LAS, affine [-3 0 0 72] [0 3 0 -106.25] [0 0 4.5 -64]"
    )
    assert "axes ???" in str(Grid((1, 1, 1), np.full((4, 4), np.nan)))


@pytest.mark.parametrize(("shape", "affine"), [((2, 3), np.eye(4)), ((2, 3, 4), np.eye(3))])
def test_grid_refuses_other_sizes(shape, affine):
    with pytest.raises(errors.ParameterError, match="is 3 sizes and"):
        Grid(shape, affine)


HALF_VOXEL = nib.affines.from_matvec(np.eye(3), [0.5, 0, 0])


TURNED = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2), [0, 0, 0])


FLIPPED_AND_SHIFTED = nib.affines.from_matvec(np.diag([-1.0, 1, 1]), [SHAPE[0] - 0.5, 0, 0])


FLIPPED_AND_ZOOMED = nib.affines.from_matvec(np.diag([-1.0, 1.001, 1]), [SHAPE[0] - 1.0, 0, 0])


HAIR = nib.affines.from_matvec(np.eye(3), [2.6e-4, 0, 0])


FLIPPED_IN_PLACE = nib.affines.from_matvec(np.diag([-1.0, 1, 1]), [0, 0, 0])


@pytest.mark.parametrize(
    "move",
    [
        HALF_VOXEL,
        HAIR,
        TURNED,
        FLIPPED_AND_SHIFTED,
        FLIPPED_AND_ZOOMED,
        FLIPPED_IN_PLACE,
        np.diag([2, 1, 1, 1]),
    ],
    ids=[
        "half voxel",
        "hair",
        "turned",
        "flipped, shifted",
        "flipped, zoomed",
        "flipped elsewhere",
        "zoomed",
    ],
)
def test_other_grids_are_refused_with_both_printed(grid, mask, move):
    own = Grid(SHAPE, OBLIQUE @ move)
    made = Regions.from_any({"insula": mask}, own)
    attempts = [
        lambda: made.on(grid),
        lambda: Regions.from_any(made, grid),
        lambda: Regions.from_any({"insula": image_of(mask.astype(np.uint8), own.affine)}, grid),
        lambda: Regions.from_any(mask, grid).on(own),
    ]
    for attempt in attempts:
        with pytest.raises(errors.GridMismatchError) as caught:
            attempt()
        assert str(own) in str(caught.value)
        assert str(grid) in str(caught.value)
        assert 'resampling_target="data"' in str(caught.value)
    with pytest.raises(errors.GridMismatchError, match="insula"):
        made.on(grid)


def test_flipped_with_another_shape_is_refused(mask):
    img = reoriented(image_of(mask.astype(np.uint8)), np.array([[0, -1], [1, 1], [2, 1]]))
    with pytest.raises(
        errors.GridMismatchError, match=r"region 'mask_000' .and 1 more. lies on another grid"
    ):
        Regions.from_any([img, img]).on(Grid((4, 5, 2), OBLIQUE))


def test_equal_singular_affines_are_one_grid(mask):
    nowhere = Grid(SHAPE, np.zeros((4, 4)))
    made = Regions.from_any(mask, nowhere)
    with pytest.raises(errors.GridMismatchError, match="lies on another grid"):
        made.on(Grid(SHAPE, OBLIQUE))
    with pytest.raises(errors.GridMismatchError, match="lies on another grid"):
        Regions.from_any(mask, Grid(SHAPE, OBLIQUE)).on(nowhere)
    assert made.on(Grid(SHAPE, np.zeros((4, 4)))) is made
