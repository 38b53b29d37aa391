"""Spheres: the voxels around points that are given in millimetres.

Covers: which voxels of a grid are a seed's, seeds as text and in tables. Does not cover: masks and atlases
(``masks``), what regions are (``regions``).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from sharedmask.errors import EmptyMaskError, MaskError, MissingFileError, ParameterError
from sharedmask.records import dataclass
from sharedmask.regions.regions import Regions
from sharedmask.spaces.grid import Grid
from sharedmask.system.delimited import is_missing, read_cells
from sharedmask.typing import Array, Numbers

_LEAST_REACH = 2 * np.sqrt(3)  # two points with the same whole millimetres are no further apart


def spheres(
    seeds: Sequence[Sequence[float]],
    radius: float | Sequence[float | None] | None,
    grid: Grid,
    inside: Array | None = None,
    *,
    allow_overlap: bool = True,
) -> Regions:
    """One region per seed, with the voxels that nilearn's ``NiftiSpheresMasker`` takes.

    They are those whose centre is at most ``radius`` away, the one in which the seed lies, and the first
    one that has the seed's coordinates but for what follows the decimal point.

    Parameters
    ----------
    seeds : (n_seeds, 3) array_like
        In millimetres.
    radius : float, None, or one for each seed
        In millimetres. None: the voxel of the seed.
    grid : Grid
    inside : (X, Y, Z) bool array, optional
        Voxels that may be taken.
    allow_overlap : bool
        Whether a voxel may be of several seeds.

    Raises
    ------
    EmptyMaskError
        A seed has no voxel.
    MaskError
        Two seeds have a voxel in common and must not.
    ParameterError
        There are more or fewer radii than seeds, or one is negative or no finite number.

    Examples
    --------
    >>> found = spheres([(2, 2, 2), (0, 0, 0)], 1.0, Grid((4, 4, 4), np.eye(4)))
    >>> found.sizes.tolist()
    [7, 4]
    """
    found = [
        _voxels(np.asarray(seed, float), reach, grid, inside)
        for seed, reach in zip(seeds, _radii(radius, len(seeds)), strict=True)
    ]
    sizes = np.array([len(voxels) for voxels in found])
    if not sizes.all():
        raise EmptyMaskError(f"These spheres are empty: {np.flatnonzero(sizes == 0)}")
    numbers = np.concatenate(found)
    if not allow_overlap and len(np.unique(numbers)) < len(numbers):
        raise MaskError("Overlap detected between spheres")
    names = tuple(",".join(f"{place:g}" for place in seed) for seed in seeds)
    offsets = np.cumsum([0, *sizes])
    return Regions(grid, numbers, offsets, names, tuple(range(1, len(found) + 1)), "list")


@dataclass(frozen=True)
class Seeds:
    """Spheres as they are written down: points and radii in millimetres, and names.

    Examples
    --------
    >>> seeds = Seeds.of(["0,-52,26,6", "-46,-68,32"])
    >>> seeds.radii, seeds.names
    ((6.0, None), ('0,-52,26', '-46,-68,32'))
    """

    points: tuple[tuple[float, ...], ...]
    radii: tuple[float | None, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, given: Sequence[str]) -> Seeds:
        """Of ``x,y,z``, ``x,y,z,r``, and tables with the columns x, y, z and, if need be, radius and name.

        Without a radius a sphere is the voxel of its point.

        Raises ParameterError of what is neither, MaskError of a table that holds anything else, naming it.
        """
        rows = [row for one in given for row in (_rows(one) if Path(one).is_file() else [_row(one)])]
        points, radii, names = zip(*rows, strict=True)
        return cls(points, radii, names)

    def on(self, grid: Grid) -> Regions:
        """Those of a grid."""
        return replace(spheres(self.points, self.radii, grid), names=self.names)


def _row(text: str, name: str = "", where: str = "") -> tuple[tuple[float, ...], float | None, str]:
    cells = [cell.strip() for cell in text.split(",")]
    try:
        x, y, z, *radius = map(float, filter(None, cells))
        if len(radius) > 1 or not all(map(np.isfinite, (x, y, z, *radius))) or (radius and radius[0] < 0):
            raise ValueError
    except ValueError:
        wrong = MaskError if where else ParameterError
        raise wrong(f"{where}{text} is no sphere: give x,y,z,radius in mm, or a table") from None
    return (x, y, z), next(iter(radius), None), name or f"{x:g},{y:g},{z:g}"


def _rows(table: str) -> list[tuple[tuple[float, ...], float | None, str]]:
    try:
        heads, *rows = read_cells(table)
    except MissingFileError:
        raise
    except ValueError as error:
        raise MaskError(f"{table} cannot be read: {error}") from error
    places = {head.strip().lower(): place for place, head in enumerate(heads)}
    places = {"radius": places.get("r", -1), "name": places.get("label", -1), **places}
    if not {"x", "y", "z"} <= set(places):
        raise MaskError(f"{table} is no table of spheres: it has no columns x, y and z, only {heads}")
    found = []
    for row in rows:
        x, y, z, radius, name = (
            "" if (place := places[key]) < 0 or is_missing(row[place]) else row[place].strip()
            for key in ("x", "y", "z", "radius", "name")
        )
        found.append(_row(f"{x},{y},{z},{radius}", name, f"{table}: "))
    return found


def _radii(radius: Any, n_seeds: int) -> list[float | None]:
    """The radius of each seed; None for its voxel alone."""
    radii = [radius] * n_seeds if radius is None or np.ndim(radius) == 0 else list(radius)
    if len(radii) != n_seeds:
        raise ParameterError(f"{len(radii)} radii for {n_seeds} seeds")
    for one in radii:
        if one is not None and not (isinstance(one, Real) and 0 <= float(one) < np.inf):
            raise ParameterError(f"{one!r} is no radius of a sphere: give millimetres, or None for one voxel")
    return radii


def _voxels(seed: Array, radius: float | None, grid: Grid, inside: Array | None) -> Numbers:
    """In C order, as numbers of the grid."""
    to_voxels = np.linalg.inv(grid.affine)
    centre = to_voxels[:3, :3] @ seed + to_voxels[:3, 3]
    reach = max(radius or 0.0, _LEAST_REACH) * np.linalg.norm(to_voxels[:3, :3], axis=1)
    low = np.clip(np.floor(centre - reach), 0, grid.shape).astype(int)
    high = np.clip(np.ceil(centre + reach) + 1, 0, grid.shape).astype(int)
    box = np.array(list(itertools.product(*map(range, low, high))), int).reshape(-1, 3)
    if inside is not None:
        box = box[inside[tuple(box.T)]]
    places = np.dot(grid.affine, np.c_[box, np.ones(len(box))].T)[:3].T
    taken = np.all(box == np.round(centre), axis=1)
    taken[np.flatnonzero(np.all(places.astype(int) == seed.astype(int), axis=1))[:1]] = True
    if radius is not None:
        taken |= np.sum((places - seed) ** 2, axis=1) <= radius**2
    numbers: Numbers = np.ravel_multi_index(tuple(box[taken].T), grid.shape, order="F")
    return numbers
