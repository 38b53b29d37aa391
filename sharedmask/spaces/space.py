"""Spaces: what is needed to know of where values lie.

Covers: what every space can be asked, the error that two are not one. Does not cover: boxes of voxels
(``grid``), surfaces and grayordinates (``brain_models``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from sharedmask.errors import GridMismatchError
from sharedmask.typing import Numbers

T = TypeVar("T")
_SPACES = 16  # for which what was made of them is held


class Space(Protocol):
    """The places of an image's values, which are numbered from 0. Its text describes it in messages."""

    @property
    def name(self) -> str:
        """The image's, for messages; may be empty."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an array with one value per place; its first axis is the fastest."""

    @property
    def n_voxels(self) -> int:
        """How many places there are."""

    @property
    def identity(self) -> bytes:
        """What tells it from others, besides its shape; for digests."""

    @property
    def remedy(self) -> str:
        """What to do about masks that lie elsewhere."""

    @property
    def volume(self) -> Space | None:
        """The box in which its voxels are; None: it has none."""

    def matches(self, other: Space, /) -> bool:
        """Whether the places are the same."""

    def numbers_of(self, own: Space, numbers: Numbers, /) -> Numbers | None:
        """Numbers here of the places ``numbers`` of the space ``own``.

        -1 for those that are left out here, as the medial wall is; None if there is no exact way.
        """

    def part(self, name: str, /) -> Numbers | None:
        """Numbers of the places of a part that has a name."""


def times(shape: Iterable[int]) -> str:
    """A shape as messages write it: ``4 x 4 x 3``."""
    return " x ".join(map(str, shape))


def mismatch_error(what: str, own: Space, target: Space, whose: str = "image") -> GridMismatchError:
    """What to raise for ``what``, in its space ``own``, where ``target`` is needed."""
    than = f" than {target.name}" if target.name else ""
    both = f"mask:  {_told(own, target)}\n  {whose}: {_told(target, own)}"
    said = f"{what} lies on another grid{than}:\n  {both}"
    if len(own.shape) < len(target.shape):
        return GridMismatchError(f"{said}\nmasks of surfaces and grayordinates go with images of these only")
    if len(own.shape) > len(target.shape) and target.volume is not None:
        return GridMismatchError(said, "resample the masks to the volume of the image's voxels")
    return GridMismatchError(said, target.remedy)


def _told(space: Space, other: Space) -> str:
    """With the volume of its voxels, if that is not where the other's are."""
    volume = space.volume
    if volume is None or volume is space or (other.volume is not None and volume.matches(other.volume)):
        return str(space)
    return f"{space}, in {volume}"


def per_space(make: Callable[[Space], T]) -> Callable[[Space], T]:
    """``make``, called once for each space of those that came last.

    The images of a study have few, or each subject's, which follow each other, have their own.

    Examples
    --------
    >>> import numpy as np
    >>> from sharedmask.spaces.grid import Grid
    >>> made = []
    >>> count = per_space(lambda space: made.append(space) or space.n_voxels)
    >>> [count(Grid((2, 2, 2), np.eye(4))) for _ in range(3)], len(made)
    ([8, 8, 8], 1)
    """
    found: dict[tuple[tuple[int, ...], bytes], T] = {}

    def once(space: Space) -> T:
        key = space.shape, space.identity
        try:
            made = found.pop(key)
        except KeyError:
            made = make(space)
        found[key] = made
        if len(found) > _SPACES:
            del found[next(iter(found))]
        return made

    return once
