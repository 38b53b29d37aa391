"""Values of regions and of elements as CIFTI-2 images, which wb_command and nibabel read.

Covers: the axes of parcels and of brain models, series, matrices and scalars of regions, series and maps of
elements.
Does not cover: reading such files (``cifti``), tables as text (``tables``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from nibabel.cifti2.cifti2 import Cifti2Image
from nibabel.cifti2.cifti2_axes import BrainModelAxis, ParcelsAxis, ScalarAxis, SeriesAxis

from sharedmask.errors import ParameterError
from sharedmask.spaces.brain_models import BrainModels
from sharedmask.spaces.grid import Grid
from sharedmask.spaces.parcellation import Elements, Parcellation
from sharedmask.spaces.space import Space
from sharedmask.typing import Array, Numbers

if TYPE_CHECKING:
    from sharedmask.regions.sets import Sets

Kind = Literal["series", "matrix", "scalars"]
_INTENTS = {
    "series": "ConnParcelSries",
    "matrix": "ConnParcels",
    "scalars": "ConnParcelScalr",
    "dense": "ConnDenseSeries",
    "maps": "ConnDenseScalar",
}

_KEPT = 16  # heads of files, some 100 KB each
_heads: dict[tuple[Any, ...], bytes] = {}


def parcellated(
    space: Space,
    names: Sequence[str],
    parts: Iterable[Numbers],
    values: Array,
    kind: Kind | None,
    t_r: float | None,
) -> Cifti2Image:
    """``values`` of regions, whose places are ``parts`` of ``space``; series, unless told otherwise.

    Raises ParameterError: the shape of the values is not that of so many regions; they are a matrix, and
    nobody said so.
    """
    if kind not in (None, "series", "matrix", "scalars"):
        raise ParameterError(f"kind={kind!r} is none of 'series', 'matrix', 'scalars'")
    values, n_regions = np.atleast_2d(values), len(names)
    is_square = values.shape == (n_regions, n_regions) and n_regions > 1
    if kind is None and is_square and np.allclose(values, values.T, rtol=1e-4, atol=0, equal_nan=True):
        said = f"values of shape {values.shape} are symmetric, as no series is"
        raise ParameterError(f"{said}: say kind='matrix', or kind='series' if they are one")
    kind = kind or "series"
    if values.ndim != 2 or values.shape[1] != n_regions or (kind == "matrix" and len(values) != n_regions):
        raise ParameterError(f"values of shape {values.shape} are no {kind} of {n_regions} regions")
    parcels = _parcels(space, names, list(parts))
    if kind == "matrix":
        return _image(values, (parcels, parcels), kind)
    along = _in_time(len(values), t_r) if kind == "series" else _scalars(len(values))
    return _image(values, (along, parcels), kind)


def content(regions: Sets, values: Array, kind: Kind, t_r: float | None) -> bytes:
    """The file of what :func:`parcellated` makes of regions.

    What precedes the values takes nibabel many times longer than these: it is kept, for the runs of a study
    have the same regions.
    """
    values = _stored(np.atleast_2d(values))
    key = regions.digest, kind, values.shape, values.dtype.str, t_r
    if (head := _heads.get(key)) is None:
        whole = parcellated(regions.grid, regions.names, regions, values, kind, t_r).to_bytes()
        if len(_heads) >= _KEPT:
            _heads.clear()
        head = _heads[key] = whole[: len(whole) - values.nbytes]
    return head + values.T.tobytes()  # the first axis is the fastest


def dense(space: Elements, values: Array, t_r: float | None = None) -> Cifti2Image:
    """``values`` of all elements or parcels, (n_timepoints, n_elements), as a series."""
    axes = _in_time(len(values), t_r), _all(space)
    return _image(values, axes, "series" if isinstance(space, Parcellation) else "dense")


def maps(space: Space, places: Numbers, values: Array, names: Sequence[str] = ()) -> Any:
    """Maps of ``values``, (n_places,) or (n_places, n_maps): NIfTI of voxels, CIFTI-2 of elements; else 0.

    ``names``: of the maps of elements, if they have any.
    """
    if isinstance(space, Grid):
        return space.to_nifti(places, values)
    columns = values.reshape(len(values), -1)
    spread = np.zeros((columns.shape[1], space.n_voxels), values.dtype)
    spread[:, places] = columns.T
    axes = _scalars(len(spread), names), _all(cast(Elements, space))
    return _image(spread, axes, "scalars" if isinstance(space, Parcellation) else "maps")


def _all(space: Elements) -> BrainModelAxis | ParcelsAxis:
    """The axis of all elements or parcels."""
    if isinstance(space, Parcellation):
        return _parcels(space, space.names, list(np.arange(space.n_voxels)[:, None]))
    return elements(space)


def elements(models: BrainModels) -> BrainModelAxis:
    """nibabel's axis of the elements."""
    names, vertices, voxels = list[str](), list[Numbers](), list[Array]()
    for one in models.structures:
        nothing = np.full(len(one.numbers), -1)
        names += [one.name] * len(one.numbers)
        vertices.append(nothing if one.n_vertices is None else one.numbers)
        voxels.append(
            _ijk(models, one.numbers) if one.n_vertices is None else np.stack([nothing] * 3, axis=1)
        )
    return BrainModelAxis(
        names, np.concatenate(voxels), np.concatenate(vertices), nvertices=_surfaces(models), **_box(models)
    )


def _parcels(space: Space, names: Sequence[str], parts: list[Numbers]) -> ParcelsAxis:
    if isinstance(space, Parcellation):
        return _parcels(space.models, names, [space.elements_of(part) for part in parts])
    voxels, vertices = np.empty(len(parts), object), np.empty(len(parts), object)
    for number, part in enumerate(parts):
        voxels[number], vertices[number] = _places(space, part)
    surfaces = _surfaces(space) if isinstance(space, BrainModels) else {}
    return ParcelsAxis(np.array(names, object), voxels, vertices, nvertices=surfaces, **_box(space))


def _places(space: Space, part: Numbers) -> tuple[Array, dict[str, Numbers]]:
    """The voxels, and the vertices of each surface."""
    if not isinstance(space, BrainModels):
        return _ijk(space, np.sort(part)), {}
    voxels, vertices = [np.empty((0, 3), np.intp)], {}
    for start, one in zip(space.starts, space.structures, strict=False):
        inside = part[(part >= start) & (part < start + len(one.numbers))] - start
        if not len(inside):
            continue
        found = np.sort(one.numbers[inside])
        if one.n_vertices is None:
            voxels.append(_ijk(space, found))
        else:
            vertices[one.name] = found
    return np.concatenate(voxels), vertices


def _ijk(space: Space, numbers: Numbers) -> Array:
    grid = space.volume if isinstance(space, BrainModels) else space
    assert isinstance(grid, Grid)
    return np.stack(np.unravel_index(numbers, grid.shape, order="F"), axis=1)


def _surfaces(models: BrainModels) -> dict[str, int]:
    return {one.name: one.n_vertices for one in models.structures if one.n_vertices is not None}


def _box(space: Space) -> dict[str, Any]:
    grid = space.volume if isinstance(space, BrainModels) else space
    return {"affine": grid.affine, "volume_shape": grid.shape} if isinstance(grid, Grid) else {}


def _in_time(length: int, t_r: float | None) -> SeriesAxis:
    return SeriesAxis(0, t_r or 0.0, length, "SECOND")  # 0: not known


def _scalars(length: int, names: Sequence[str] = ()) -> ScalarAxis:
    return ScalarAxis(names or [f"map {number}" for number in range(1, length + 1)])


def _image(values: Array, axes: Any, kind: str) -> Cifti2Image:
    image = Cifti2Image(_stored(values), axes)
    image.nifti_header.set_intent(_INTENTS[kind])
    return image


def _stored(values: Array) -> Array:
    dtype = values.dtype if values.dtype in (np.float32, np.float64) else np.dtype(np.float32)
    return np.ascontiguousarray(values, dtype)
