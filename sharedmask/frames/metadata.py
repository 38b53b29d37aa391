"""What is known of frames besides their voxels: motion, gradients, timing, the brain.

Covers: one value per frame, one value for all, checking them, taking those of some frames. Does not
cover: the frames (``store``), files (``nfdh5``).
"""

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any

import numpy as np

from sharedmask.errors import ParameterError
from sharedmask.records import dataclass
from sharedmask.typing import Array, NDArray

_RESERVED = ("dataobj", "affine", "brainmask", "motion_affines", "datahdr")


@dataclass(frozen=True, eq=False)
class Metadata:
    """The fields of N frames; all arrays are read-only."""

    numbers: NDArray[np.intp]
    """(N,): which frame of the original run each of them is."""
    motion_affines: Array | None = None
    """(N, 4, 4) float64."""
    brainmask: Array | None = None
    """(X, Y, Z) bool."""
    per_frame: Mapping[str, Array] = field(default_factory=dict)
    """(N, ...) each."""
    overall: Mapping[str, Array] = field(default_factory=dict)

    @classmethod
    def checked(
        cls,
        shape: tuple[int, ...],
        *,
        brainmask: Any = None,
        motion_affines: Any = None,
        per_frame: Mapping[str, Any] | None = None,
        overall: Mapping[str, Any] | None = None,
        numbers: Any = None,
    ) -> "Metadata":
        """Fields of the frames of an image of that shape.

        Raises ParameterError: naming the field, the shape that it has and the one that it needs.
        """
        n_frames = shape[3]
        return cls(
            _array("numbers", np.arange(n_frames) if numbers is None else numbers, (n_frames,), np.intp),
            _optional("motion_affines", motion_affines, (n_frames, 4, 4), np.float64),
            _optional("brainmask", brainmask, shape[:3], np.bool_),
            {name: _per_frame(name, values, n_frames) for name, values in (per_frame or {}).items()},
            {name: _array(_name(name), value) for name, value in (overall or {}).items()},
        )

    @property
    def arrays(self) -> dict[str, Array]:
        """All of them, by names of which :meth:`from_arrays` makes them again."""
        optional = {"motion_affines": self.motion_affines, "brainmask": self.brainmask}
        return {
            "numbers": self.numbers,
            **{name: values for name, values in optional.items() if values is not None},
            **{f"per_frame/{name}": values for name, values in self.per_frame.items()},
            **{f"overall/{name}": values for name, values in self.overall.items()},
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> "Metadata":
        """The opposite of ``arrays``, among which others may be."""
        groups: dict[str, dict[str, Array]] = {"per_frame": {}, "overall": {}, "": {}}
        for name, values in arrays.items():
            group, _, field_name = name.rpartition("/")
            groups[group][field_name] = values
        first = groups.pop("")
        numbers = first.pop("numbers").view(np.ndarray)
        return cls(numbers, first.get("motion_affines"), first.get("brainmask"), **groups)

    def updated(self, other: "Metadata") -> "Metadata":
        """These fields, with what ``other`` has in their place."""
        return replace(
            self,
            motion_affines=self.motion_affines if other.motion_affines is None else other.motion_affines,
            brainmask=self.brainmask if other.brainmask is None else other.brainmask,
            per_frame={**self.per_frame, **other.per_frame},
            overall={**self.overall, **other.overall},
        )

    def select(self, chosen: Any) -> "Metadata":
        """The fields of the frames that ``chosen`` indexes."""
        affines, *values = self.at(chosen)
        per_frame = dict(zip(self.per_frame, values, strict=True))
        return replace(self, numbers=self.numbers[chosen], motion_affines=affines, per_frame=per_frame)

    def at(self, chosen: Any) -> tuple[Any, ...]:
        """Motion and the other fields of the frames that ``chosen`` indexes."""
        affines = None if self.motion_affines is None else self.motion_affines[chosen]
        return affines, *(values[chosen] for values in self.per_frame.values())

    def is_close_to(self, other: "Metadata") -> bool:
        """Whether both say the same, up to rounding; the frames' numbers do not count."""
        return (
            _close(self.motion_affines, other.motion_affines)
            and _close(self.brainmask, other.brainmask)
            and _all_close(self.per_frame, other.per_frame)
            and _all_close(self.overall, other.overall)
        )


def _optional(name: str, given: Any, shape: tuple[int, ...], dtype: Any) -> Array | None:
    return None if given is None else _array(name, given, shape, dtype)


def _per_frame(name: str, given: Any, n_frames: int) -> Array:
    values = _array(_name(name), given)
    if values.shape[:1] != (n_frames,):
        raise ParameterError(f"{name} has shape {values.shape}: its first axis must be the {n_frames} frames")
    return values


def _name(name: str) -> str:
    proper = isinstance(name, str) and name.isidentifier() and not name.startswith("_")
    if not proper or name in _RESERVED:
        raise ParameterError(f"{name!r} is no name for a field: a word, and none of {', '.join(_RESERVED)}")
    return name


def _array(name: str, given: Any, shape: tuple[int, ...] | None = None, dtype: Any = None) -> Array:
    try:
        values = np.array(given, dtype, order="C")
    except (TypeError, ValueError) as error:
        raise ParameterError(f"{name} is no array of numbers: {error}") from error
    if values.dtype.kind not in "biuf":
        raise ParameterError(f"{name} holds {values.dtype} values; fields are real numbers or booleans")
    if shape is not None and values.shape != shape:
        raise ParameterError(f"{name} has shape {values.shape} where {shape} is needed")
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    values.setflags(write=False)
    return values


def _close(one: Array | None, other: Array | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and bool(np.allclose(one, other, equal_nan=True))


def _all_close(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return one.keys() == other.keys() and all(_close(one[name], other[name]) for name in one)
