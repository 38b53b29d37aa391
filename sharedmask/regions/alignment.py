"""Alignment: an image and regions on one grid, for masks that lie on another than the image.

Covers: resampling the image to the box of the masks; the mask that goes with an image. Does not cover: the
arithmetic (``source``), resampling masks (``masks``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sharedmask.errors import EmptyMaskError, GridMismatchError
from sharedmask.regions.regions import Regions
from sharedmask.sources.source import Source
from sharedmask.sources.transform import resampled, voxel_transform
from sharedmask.spaces.grid import Grid
from sharedmask.spaces.space import Space, mismatch_error
from sharedmask.typing import Array, Numbers

# --- an image and its masks ----------------------------------------------------------------------


def align_to_masks(source: Source, regions: Regions) -> tuple[Source, Regions]:
    """The image on the grid of its masks, as far as they reach, and the masks there.

    If that grid is the image's but for flipped or permuted axes, nothing is resampled.

    Raises EmptyMaskError, naming a region that lies beyond the image.
    Raises GridMismatchError: one of them is no volume.
    """
    own, grid = source.grid, regions.grid
    if regions.fits(own):
        return source, regions.on(own)
    if not (isinstance(own, Grid) and isinstance(grid, Grid)):
        raise mismatch_error(f"region {regions.names[0]!r}", grid, own)
    coordinates = np.array(np.unravel_index(regions.indices, grid.shape, order="F"))
    _check_reached(source, regions, grid, coordinates)
    start = np.maximum(coordinates.min(axis=1) - 1, 0)
    stop = np.minimum(coordinates.max(axis=1) + 2, grid.shape)
    box = _box(grid, start, stop)
    indices = np.ravel_multi_index(tuple(coordinates - start[:, None]), box.shape, order="F")
    return resampled(source, box), replace(regions, grid=box, indices=indices)


def brain_voxels(mask_img: Any, grid: Space) -> Numbers:
    """Numbers of the voxels inside a mask that goes with an image, sorted.

    Raises GridMismatchError: such a mask is not resampled.
    """
    try:
        return Regions.from_any(mask_img, grid).union
    except GridMismatchError as error:
        todo = 'resample the mask first: nilearn.image.resample_to_img(mask, image, interpolation="nearest")'
        raise (error.instead(todo) if isinstance(grid, Grid) else error) from None


def _box(grid: Grid, start: Array, stop: Array) -> Grid:
    """Part of a grid; in the arithmetic with which nilearn's masker crops its mask."""
    affine = grid.affine.copy()
    affine[:3, 3] = grid.affine[:3, 3] + grid.affine[:3, :3].dot(start)
    return Grid(tuple((stop - start).tolist()), affine)


def _check_reached(source: Source, regions: Regions, grid: Grid, coordinates: Array) -> None:
    matrix, offset = voxel_transform(source, grid)
    there = (np.diag(matrix) if matrix.ndim == 1 else matrix) @ coordinates + offset[:, None]
    middle = (np.array(source.shape[:3])[:, None] - 1) / 2
    inside = np.all(np.abs(there - middle) < middle + 0.5, axis=0)
    for name, start, stop in zip(regions.names, regions.offsets, regions.offsets[1:], strict=False):
        if not inside[start:stop].any():
            raise EmptyMaskError(f"mask {name!r} lies beyond {source.name}: no voxel of it is in the image")
