"""CIFTI-2 files: their axes, and what these say of an image.

Covers: which axis is time and which are places, whatever their order; brain models, names of labels, the
time from one volume to the next; refusing what has no values of elements. Does not cover: the header before
the axes and the bytes after it (``nifti``), reading values (``source``, ``by_row``).

The only module that knows nibabel's CIFTI-2 reader. On disk a file's first axis is the fastest: of time by
elements, as these files usually are, a row is one element's whole series.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from nibabel.cifti2.cifti2 import Cifti2Image

from sharedmask.errors import ImageError
from sharedmask.records import dataclass
from sharedmask.sources.nifti import HEADER_TIME
from sharedmask.sources.sidecar import positive
from sharedmask.spaces.brain_models import BrainModels
from sharedmask.spaces.grid import Grid
from sharedmask.typing import Numbers

_KINDS = {
    "CIFTI_INDEX_TYPE_BRAIN_MODELS": "elements",
    "CIFTI_INDEX_TYPE_SERIES": "a series",
    "CIFTI_INDEX_TYPE_SCALARS": "maps",
    "CIFTI_INDEX_TYPE_LABELS": "label maps",
    "CIFTI_INDEX_TYPE_PARCELS": "parcels",
}


@dataclass(frozen=True)
class Axes:
    """What the axes of a file say."""

    facts: dict[str, Any]
    """Of :class:`sharedmask.sources.source.Facts`, slope and intercept aside; and the labels' names."""
    by_row: bool
    """Whether an element's values lie side by side on disk."""


def is_cifti(image: Any) -> bool:
    """Whether nibabel took it for one."""
    return isinstance(image, Cifti2Image)


def read_axes(name: str, image: Any, dtype: np.dtype[Any]) -> Axes:
    """The axes of a loaded image, of which no value is read.

    Raises
    ------
    ImageError
        It has no elements with values, no real numbers, or a header that does not fit them.
    """
    matrix = image.header.matrix
    maps = [matrix.get_index_map(i) for i in range(len(image.shape))]
    kinds = [_KINDS.get(one.indices_map_to_data_type, "an unknown axis") for one in maps]
    if dtype.kind not in "iuf":
        raise ImageError(f"{name} holds {dtype} values; only real numbers can be served")
    _check_kinds(name, kinds)
    place = kinds.index("elements")
    along, kind = maps[1 - place], kinds[1 - place]
    models = _models(name, maps[place])
    n_maps = image.shape[1 - place]
    if models.n_voxels != image.shape[place] or not n_maps:
        raise ImageError(f"{name} has shape {image.shape} where its axes say {models} by {kind}")
    affine = np.eye(4) if models.volume is None else np.array(models.volume.affine)
    affine.setflags(write=False)
    seconds = _seconds(along) if kind == "a series" else None
    facts = {
        "name": name,
        "shape": (models.n_voxels, n_maps),
        "ndim": 1 if n_maps == 1 and kind != "a series" else 2,
        "dtype": dtype.newbyteorder("="),
        "affine": affine,
        "t_r": seconds,
        "t_r_origin": HEADER_TIME if seconds else f"neither {name} nor a sidecar gives a repetition time",
        "header": _plain_header(image),
        "models": models,
        "labels": _names(name, along) if kind == "label maps" else None,
    }
    return Axes(facts, by_row=place == 1)


def _check_kinds(name: str, kinds: list[str]) -> None:
    said = " by ".join(kinds)
    if kinds == ["elements", "elements"]:
        raise ImageError(f"{name} is a dense matrix, {said}, and no series: give the .dtseries.nii")
    if kinds.count("elements") != 1 or len(kinds) != 2 or "parcels" in kinds:
        raise ImageError(f"{name} holds {said}, and no values of elements: give a .dtseries.nii")
    if ".dtseries." in name.lower() and "a series" not in kinds:
        raise ImageError(f"{name} is called a dense series and has no axis of time: it holds {said}")


def _models(name: str, axis: Any) -> BrainModels:
    volume, said, numbers = None, [], list[Numbers]()
    if axis.volume is not None:
        affine = axis.volume.transformation_matrix_voxel_indices_ijk_to_xyz
        scale = 10.0 ** (affine.meter_exponent + 3)  # millimetres
        matrix = np.array(affine.matrix, np.float64)
        matrix[:3] *= scale
        volume = Grid(tuple(axis.volume.volume_dimensions), matrix, name)
    end = 0
    for model in sorted(axis.brain_models, key=lambda model: model.index_offset):
        vertices = model.surface_number_of_vertices
        if model.model_type == "CIFTI_MODEL_TYPE_SURFACE":
            found = np.array(list(model.vertex_indices), np.intp)
            fits = not len(found) or 0 <= found.min() <= found.max() < vertices
        else:
            found, vertices = _voxels(name, model, volume), None
            fits = bool(np.all(found >= 0))
        if model.index_offset != end or len(found) != model.index_count or not fits:
            said_of = f"{model.brain_structure} has {model.index_count} elements from {model.index_offset} on"
            raise ImageError(f"{name} is damaged: {said_of}, which do not fit the other axes")
        end += len(found)
        said.append((model.brain_structure, len(found), vertices))
        numbers.append(found)
    if not end:
        raise ImageError(f"{name} has no elements")
    return BrainModels.of(said, np.concatenate(numbers), volume, name)


def _voxels(name: str, model: Any, volume: Grid | None) -> Numbers:
    """In the box of the volume, x fastest; -1 for those outside."""
    if volume is None:
        raise ImageError(f"{name} has voxels of {model.brain_structure} and says no volume for them")
    indices = np.array(list(model.voxel_indices_ijk), np.intp).reshape(-1, 3)
    inside = np.all((indices >= 0) & (indices < volume.shape), axis=1)
    strides = np.cumprod([1, *volume.shape[:2]])
    return np.asarray(np.where(inside, indices @ strides, -1), np.intp)


def _seconds(axis: Any) -> float | None:
    if axis.series_unit != "SECOND":
        return None
    return positive(float(axis.series_step) * 10.0**axis.series_exponent)


def _names(name: str, axis: Any) -> Mapping[int, str]:
    """Of the labels of one map; of several those that all have alike."""
    tables = [one.label_table or {} for one in axis.named_maps]
    found = {int(key): label.label for table in tables for key, label in table.items()}
    unnamed = sorted(key for key, label in found.items() if key and not (label or "").strip())
    if not found or unnamed:
        of = f" to {', '.join(map(str, unnamed[:5]))}" if unnamed else "s"
        raise ImageError(f"{name} has a label table that gives no name{of}: give names with wb_command")
    return {key: label or "" for key, label in found.items()}


def _plain_header(image: Any) -> Any:
    """The NIfTI header, without the axes."""
    header = image.nifti_header.copy()
    header.extensions.clear()
    return header
