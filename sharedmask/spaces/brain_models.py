"""Brain models: where the values of surfaces and of grayordinates are.

Covers: structures with their vertices and voxels, comparing them vertex by vertex, the places of one file
as numbers on another with or without the medial wall, of a volume among them. Does not cover: reading what
files say of them (``sources``), which places are meant (``regions``).
"""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sharedmask.records import dataclass
from sharedmask.spaces.grid import Grid
from sharedmask.spaces.space import Space
from sharedmask.system.process import cached_property
from sharedmask.typing import Numbers

_PREFIX = "CIFTI_STRUCTURE_"
VOXELS = f"{_PREFIX}OTHER"
"""What voxels are of where no structure is told, as those of parcels."""


@dataclass(frozen=True, eq=False)
class Structure:
    """Some vertices of one surface, or some voxels of one volume."""

    name: str  # CIFTI's: CIFTI_STRUCTURE_CORTEX_LEFT
    numbers: Numbers  # (n,), of the vertices; or of the voxels in the box of the volume, x fastest
    n_vertices: int | None = None  # of the whole surface; None: these are voxels

    def __str__(self) -> str:
        short = self.name.removeprefix(_PREFIX)
        if self.n_vertices is None:
            return f"{short} {len(self.numbers)} voxels"
        return f"{short} {len(self.numbers)} of {self.n_vertices} vertices"

    def is_like(self, other: Structure) -> bool:
        """Whether both are of one surface, or of one volume."""
        return (self.name, self.n_vertices) == (other.name, other.n_vertices)


@dataclass(frozen=True, eq=False)
class BrainModels:
    """The structures of an image, one after the other: where its elements are.

    Examples
    --------
    >>> left = Structure("CIFTI_STRUCTURE_CORTEX_LEFT", np.array([0, 2, 3]), 4)
    >>> models = BrainModels((left,))
    >>> print(models)
    3 elements: CORTEX_LEFT 3 of 4 vertices
    >>> whole = BrainModels((Structure("CIFTI_STRUCTURE_CORTEX_LEFT", np.arange(4), 4),))
    >>> models.numbers_of(whole, np.array([0, 1, 2]))
    array([ 0, -1,  1])
    """

    structures: tuple[Structure, ...]
    volume: Grid | None = None  # in which voxels have their numbers
    name: str = ""  # the image's, for messages
    remedy = "resample the masks to the image's surfaces with wb_command or neuromaps"

    @property
    def n_voxels(self) -> int:
        """Number of elements."""
        return sum(len(one.numbers) for one in self.structures)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_voxels,)

    @cached_property
    def identity(self) -> bytes:
        said = [(one.name, one.n_vertices, len(one.numbers)) for one in self.structures]
        volume = (self.volume.shape, self.volume.identity) if self.volume else None
        return repr((said, volume)).encode() + self._numbers.astype("<i8").tobytes()

    @property
    def _numbers(self) -> Numbers:
        return np.concatenate([one.numbers for one in self.structures])

    @property
    def starts(self) -> list[int]:
        """The number of the first element of each structure, and of all elements."""
        return [0, *np.cumsum([len(one.numbers) for one in self.structures]).tolist()]

    def matches(self, other: Space) -> bool:
        """Whether the elements are the same vertices and voxels, in the same order."""
        if self is other:
            return True
        if not isinstance(other, BrainModels) or len(self.structures) != len(other.structures):
            return False
        pairs = zip(self.structures, other.structures, strict=True)
        return self._same_volume(other) and all(
            mine is its or (mine.is_like(its) and np.array_equal(mine.numbers, its.numbers))
            for mine, its in pairs
        )

    def _same_volume(self, other: BrainModels) -> bool:
        if self.volume is None or other.volume is None:
            return self.volume is other.volume
        return self.volume.matches(other.volume)

    def numbers_of(self, own: Space, numbers: Numbers) -> Numbers | None:
        """Numbers here of elements, or of voxels of a volume.

        -1 for vertices of a structure that are not among those here, and for voxels of a volume. None if
        one of them is of a structure that is not here, of a surface with another number of vertices, or a
        voxel that an element should be and none is.
        """
        if isinstance(own, Grid):
            inside = None if self.volume is None else self.volume.numbers_of(own, numbers)
            return None if inside is None else self._elements_of_voxels[inside]
        if not isinstance(own, BrainModels):
            return None
        return numbers if self.matches(own) else self._of_elements(own, numbers)

    @property
    def _elements_of_voxels(self) -> Numbers:
        """For each voxel of the volume its element; -1: there is none."""
        found = np.full(self.volume.n_voxels if self.volume else 0, -1, np.intp)
        for start, one in zip(self.starts, self.structures, strict=False):
            if one.n_vertices is None:
                found[one.numbers] = np.arange(start, start + len(one.numbers))
        return found

    def _of_elements(self, own: BrainModels, numbers: Numbers) -> Numbers | None:
        table = np.full(own.n_voxels, -2, np.intp)  # -2: there is nothing like it here
        volume = own.volume is not None and self.volume is not None and self.volume.matches(own.volume)
        for start, theirs in zip(own.starts, own.structures, strict=False):
            if theirs.name == VOXELS and volume:
                inside = self._elements_of_voxels[theirs.numbers]
                table[start : start + len(theirs.numbers)] = np.where(inside < 0, -2, inside)
                continue
            for first, mine in zip(self.starts, self.structures, strict=False):
                if mine.is_like(theirs) and (volume or mine.n_vertices is not None):
                    table[start : start + len(theirs.numbers)] = _matched(theirs, mine, first)
        found = table[numbers]
        return None if np.any(found == -2) else found

    def part(self, name: str) -> Numbers | None:
        """The elements of a structure: ``CortexLeft``, ``CORTEX_LEFT``, ``CIFTI_STRUCTURE_CORTEX_LEFT``."""
        for start, one in zip(self.starts, self.structures, strict=False):
            if _plain(one.name) == _plain(name):
                return np.arange(start, start + len(one.numbers))
        return None

    @property
    def parts(self) -> str:
        """The structures' names, for messages."""
        return ", ".join(one.name.removeprefix(_PREFIX) for one in self.structures)

    def __str__(self) -> str:
        surfaces = [str(one) for one in self.structures if one.n_vertices is not None]
        voxels = [one for one in self.structures if one.n_vertices is None]
        if len(voxels) > 1:
            count, n_voxels = len(voxels), sum(len(one.numbers) for one in voxels)
            surfaces.append(f"{count} structures of {n_voxels} voxels")
        elif voxels:
            surfaces.append(str(voxels[0]))
        return f"{self.n_voxels} elements: {', '.join(surfaces)}"

    # --- travelling ---

    def to_dict(self) -> dict[str, Any]:
        """What JSON has; some ten kilobytes for all grayordinates."""
        steps = np.diff(self._numbers, prepend=0).astype("<i4")
        volume = self.volume and {"shape": self.volume.shape, "affine": self.volume.affine.tolist()}
        return {
            "structures": [[one.name, len(one.numbers), one.n_vertices] for one in self.structures],
            "numbers": b64encode(zlib.compress(steps.tobytes(), 6)).decode(),
            "volume": volume,
            "name": self.name,
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> BrainModels:
        """The opposite of :meth:`to_dict`.

        Raises ValueError: it holds none.
        """
        try:
            steps = np.frombuffer(zlib.decompress(b64decode(given["numbers"])), "<i4")
        except zlib.error as error:
            raise ValueError(f"no brain models: {error}") from error
        numbers = np.cumsum(steps, dtype=np.intp)
        volume = given["volume"] and Grid(tuple(given["volume"]["shape"]), given["volume"]["affine"])
        return cls.of(given["structures"], numbers, volume, given["name"])

    @classmethod
    def of(
        cls, said: Iterable[tuple[str, int, int | None]], numbers: Numbers, volume: Grid | None, name: str
    ) -> BrainModels:
        """Of the name, the number of elements and of vertices of each structure, and all their numbers."""
        numbers.flags.writeable = False
        structures, start = [], 0
        for structure, count, n_vertices in said:
            structures.append(Structure(structure, numbers[start : start + count], n_vertices))
            start += count
        return cls(tuple(structures), volume, name)

    def __reduce__(self) -> Any:
        return BrainModels.from_dict, (self.to_dict(),)


def _matched(theirs: Structure, mine: Structure, first: int) -> Numbers:
    """The number of each of their elements among mine, which begin at ``first``; negative: there is none."""
    size = max(int(theirs.numbers.max(initial=0)), int(mine.numbers.max(initial=0))) + 1
    table = np.full(size, -2 if mine.n_vertices is None else -1, np.intp)
    table[mine.numbers] = np.arange(first, first + len(mine.numbers))
    return table[theirs.numbers]


def _plain(name: str) -> str:
    """A structure's name however it is written."""
    return name.upper().removeprefix(_PREFIX).replace("_", "").replace(" ", "")
