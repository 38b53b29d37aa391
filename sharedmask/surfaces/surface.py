"""Values on the vertices of surfaces.

Covers: one hemisphere or several, which structure a file is of. Does not cover: reading files (``gifti``,
``freesurfer``), vertices that are left out (``brain_models``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os.path import basename
from typing import Any

import numpy as np

from sharedmask.errors import ImageError
from sharedmask.records import dataclass
from sharedmask.spaces.brain_models import BrainModels
from sharedmask.system.identity import FileState
from sharedmask.typing import Array

CORTEX = "CIFTI_STRUCTURE_CORTEX"
_HEMISPHERES = {"l": f"{CORTEX}_LEFT", "r": f"{CORTEX}_RIGHT"}
_HEMISPHERE = [  # the surest first: L and R may be names of other things
    re.compile(rf"(?:^|[._-]){said}(?=[._-])") for said in ("hemi-([LR])", "([lr])h", "([LR])")
]


@dataclass(frozen=True, eq=False)
class Surface:
    """What files of surfaces hold.

    ``values``: (n_vertices, n_maps).
    ``is_series``: whether maps follow each other in time.
    ``labels``: names of values that are labels.
    ``t_r``: seconds from one map to the next, if the file itself has them.
    ``files``: others than the file itself that values were read from, as they were then.
    """

    models: BrainModels
    values: Array
    is_series: bool
    labels: Mapping[int, str] | None = None
    t_r: float | None = None
    files: tuple[FileState, ...] = ()

    @classmethod
    def of_parts(
        cls, name: str, parts: Mapping[str, Array], is_series: bool, labels: Mapping[int, str] | None = None
    ) -> Surface:
        """Of the values, (n_vertices, n_maps), of whole surfaces by the structures' names."""
        columns = {values.shape[1] for values in parts.values()}
        if len(columns) != 1 or not all(columns) or not all(len(values) for values in parts.values()):
            shapes = ", ".join(f"{values.shape}" for values in parts.values())
            raise ImageError(f"{name} holds no values of as many vertices by as many maps: {shapes}")
        said = [(structure, len(values), len(values)) for structure, values in parts.items()]
        numbers = np.concatenate([np.arange(count) for _, count, _ in said])
        values = np.concatenate(list(parts.values()))
        if values.dtype.kind not in "biuf":
            raise ImageError(f"{name} holds {values.dtype} values; only real numbers can be served")
        values = values.view(np.uint8) if values.dtype == bool else values
        return cls(BrainModels.of(said, numbers, None, name), values, is_series, labels)

    @classmethod
    def joined(cls, name: str, parts: Sequence[Surface]) -> Surface:
        """Hemispheres as one.

        Raises ImageError: two are of one structure, one has labels and another values, or not as many maps.
        """
        structures = [one.name for part in parts for one in part.models.structures]
        if len(set(structures)) < len(structures):
            raise ImageError(f"{name} are of one hemisphere: {', '.join(structures)}")
        if len({part.labels is None for part in parts}) > 1:
            raise ImageError(f"{name} are labels and values")
        counts = [part.values.shape[1] for part in parts]
        if len(set(counts)) > 1:
            raise ImageError(f"{name} have {' and '.join(map(str, counts))} maps")
        labels: dict[int, str] = {}
        values: dict[str, Array] = {}
        for structure, part in zip(structures, parts, strict=True):
            other = part._renumbered(labels)
            labels |= other.labels or {}
            values[structure] = other.values
        joined = cls.of_parts(name, values, parts[0].is_series, labels or None)
        times = {part.t_r for part in parts}
        t_r = times.pop() if len(times) == 1 else None
        return replace(joined, t_r=t_r, files=tuple(file for part in parts for file in part.files))

    def _renumbered(self, taken: Mapping[int, str]) -> Surface:
        """With other labels, where ``taken`` has other names for them."""
        own = self.labels or {}
        if all(taken.get(key, label) == label for key, label in own.items()):
            return self
        step = max(taken) + 1
        values = np.where(self.values == 0, 0, self.values.astype(np.int64) + step)
        return replace(self, values=values, labels={key + step: label for key, label in own.items() if key})


class Later:
    """An array that is read when it is asked for, once in each process: copies that travel are without it."""

    def __init__(self, read: Callable[[], Array], values: Array) -> None:
        self._read = read
        self._values: Array | None = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if self._values is None:
            self._values = self._read()
        return self._values if dtype is None else self._values.astype(dtype, copy=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"_read": self._read, "_values": None}


def structure_of(path: str, said: Any = None) -> str:
    """CIFTI's name of the structure that a file is of: as it says itself, or as it is called."""
    if said:
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(said)).upper()
        return words if words.startswith("CIFTI_") else f"CIFTI_STRUCTURE_{words}"
    found = next(filter(None, (told.search(basename(path)) for told in _HEMISPHERE)), None)
    return _HEMISPHERES[found[1].lower()] if found else CORTEX
