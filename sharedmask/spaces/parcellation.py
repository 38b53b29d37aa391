"""Parcellations: where the values of parcellated files are, one for each parcel.

Covers: parcels with their names and the vertices and voxels of each, comparing them, the same as labels of
elements, a table of labels. Does not cover: elements that have a value each (``brain_models``), reading
files (``sources``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sharedmask.errors import ImageError
from sharedmask.records import dataclass
from sharedmask.spaces.brain_models import BrainModels
from sharedmask.spaces.space import Space
from sharedmask.system.process import cached_property
from sharedmask.typing import Numbers

_SHOWN = 3  # parcels in a message


@dataclass(frozen=True, eq=False)
class Parcellation:
    """Parcels: each is some of the elements of ``models``.

    Examples
    --------
    >>> from sharedmask.spaces.brain_models import Structure
    >>> models = BrainModels((Structure("CIFTI_STRUCTURE_CORTEX_LEFT", np.array([0, 2, 3]), 4),))
    >>> parcels = Parcellation(("V1", "A1"), models, np.array([0, 1, 1]))
    >>> print(parcels)
    2 parcels (V1, A1) of 3 elements: CORTEX_LEFT 3 of 4 vertices
    >>> parcels.part("A1"), parcels.elements_of(np.array([1]))
    (array([1]), array([1, 2]))
    """

    names: tuple[str, ...]
    models: BrainModels  # all elements that are in a parcel
    owners: Numbers  # (n_elements,), the number of the parcel that each of them is in
    name: str = ""  # the image's, for messages
    volume = None
    remedy = "give labels or masks of its parcels, or the dense series (.dtseries.nii) in its place"

    @property
    def n_voxels(self) -> int:
        """Number of parcels."""
        return len(self.names)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_voxels,)

    @cached_property
    def identity(self) -> bytes:
        return repr(self.names).encode() + self.owners.astype("<i8").tobytes() + self.models.identity

    def matches(self, other: Space) -> bool:
        """Whether these are the same parcels, in the same order."""
        return self is other or (isinstance(other, Parcellation) and self.identity == other.identity)

    def numbers_of(self, own: Space, numbers: Numbers) -> Numbers | None:
        """Numbers here of the same parcels; None if one is another, whatever its name."""
        if self.matches(own):
            return numbers
        if not isinstance(own, Parcellation):
            return None
        here = {parcel: number for number, parcel in enumerate(self._parcels)}
        found = np.array([here.get(parcel, -1) for parcel in own._parcels], np.intp)[numbers]
        return None if np.any(found < 0) else found

    @cached_property
    def _parcels(self) -> list[tuple[str, bytes]]:
        """What tells each parcel from others, wherever it stands."""
        said = [(one.name, one.n_vertices or 0) for one in self.models.structures]
        structures = sorted(set(said))
        codes = np.repeat([structures.index(one) for one in said], np.diff(self.models.starts))
        places = np.concatenate([one.numbers for one in self.models.structures])
        order = np.lexsort((places, codes, self.owners))
        ends = np.searchsorted(self.owners[order], np.arange(self.n_voxels + 1))
        box = self.models.volume and (self.models.volume.shape, self.models.volume.identity)
        found = []
        for number, name in enumerate(self.names):
            inside = order[ends[number] : ends[number + 1]]
            kinds, counts = np.unique(codes[inside], return_counts=True)
            of = [(structures[kind], n) for kind, n in zip(kinds.tolist(), counts.tolist(), strict=True)]
            found.append((name, repr((of, box)).encode() + places[inside].tobytes()))
        return found

    def elements_of(self, parcels: Numbers) -> Numbers:
        """Numbers among those of ``models`` of the elements in some parcels."""
        return np.flatnonzero(np.isin(self.owners, parcels))

    def part(self, name: str) -> Numbers | None:
        """The parcel of that name; all of them if several have it."""
        found = np.array([number for number, own in enumerate(self.names) if own == name], np.intp)
        return found if len(found) else None

    @property
    def parts(self) -> str:
        """The parcels' names, for messages."""
        return shortened(self.names)

    def __str__(self) -> str:
        return f"{self.n_voxels} parcels ({self.parts}) of {self.models}"

    # --- travelling ---

    def to_dict(self) -> dict[str, Any]:
        """What JSON has."""
        said = {"parcels": list(self.names), "owners": self.owners.tolist(), "name": self.name}
        return said | {"models": self.models.to_dict()}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Parcellation:
        """The opposite of :meth:`to_dict`."""
        owners, models = np.array(given["owners"], np.intp), BrainModels.from_dict(given["models"])
        return cls(tuple(given["parcels"]), models, owners, given["name"])

    def __reduce__(self) -> Any:
        return Parcellation.from_dict, (self.to_dict(),)


Elements = BrainModels | Parcellation
"""Where the values of an image are that is no volume."""


def elements_from_dict(given: Mapping[str, Any]) -> Elements:
    """What ``to_dict`` of either gave."""
    kind = Parcellation if "parcels" in given else BrainModels
    return kind.from_dict(given)


def shortened(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def names_of(name: str, table: Iterable[tuple[int, str | None]]) -> dict[int, str]:
    """The names of labels, of which ``name``, a file, has this table.

    Raises ImageError: one has no name, or two.
    """
    found: dict[int, str] = {}
    for key, label in table:
        if found.setdefault(key, said := (label or "").strip()) != said:
            raise ImageError(f"{name} has a label table that gives {key} two names: {found[key]} and {said}")
    if unnamed := sorted(key for key, label in found.items() if key and not label):
        keys = ", ".join(map(str, unnamed[:5]))
        raise ImageError(f"{name} has a label table that gives no name to {keys}: give names with wb_command")
    return found
