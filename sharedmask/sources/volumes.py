"""Volumes: what is needed of an image to read it.

Covers: one pass over an image, from the first volume on, as whoever reads it sees it; a pass over some of
its voxels. Does not cover: images in files and in memory (``source``), where volumes go (``loader``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from sharedmask.errors import ParameterError
from sharedmask.records import dataclass
from sharedmask.typing import Array


class VolumesReader(Protocol):
    """One pass over the volumes of an image."""

    def readinto(self, out: Array, /) -> None:
        """Fill the rows of ``out``, (k, n_voxels), or ``out`` itself, (n_voxels,), with the next volumes.

        ``out`` is C-contiguous and of the image's ``dtype``. No more volumes may be asked for than are left.

        Raises DamagedImageError: the volumes are truncated; or their checksum is wrong, which the last volume
        tells at the latest.
        """

    def seen(self, room: Array, /) -> Array:
        """The next volumes, (k, n_voxels), in ``room``, or some of them where they already lie.

        They are valid until the next call.
        """
        self.readinto(room)
        return room


class Volumes(Protocol):
    """An image as ``loader`` reads it: how large it is, and its volumes one after the other.

    A source is one; so are a subject of a connectome, and the same voxels of every volume of a run.
    """

    @property
    def n_voxels(self) -> int:
        """Of one volume."""

    @property
    def n_timepoints(self) -> int:
        """Volumes of one pass."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what is read; in native byte order."""

    @property
    def reads_ahead(self) -> bool:
        """Whether a pass reads ahead by itself, so that nobody else has to."""

    @property
    def reading_bytes(self) -> int:
        """Memory that a pass takes besides what it is read into, where that is much."""

    def volumes(self) -> AbstractContextManager[VolumesReader]:
        """A pass from the first volume on, in any thread, independent of all others.

        It may end before the last volume; at the end of the ``with`` block nothing of it is left open.
        """


class NamedVolumes(Volumes, Protocol):
    """Volumes of an image that messages can name."""

    @property
    def name(self) -> str: ...


class VolumeReader(VolumesReader):
    """Reads the volumes of a source one after the other; `remaining` counts those not read yet.

    `view`, if given, is told how many are left after a volume and gives it where it already lies, if it does:
    most do, then.
    """

    def __init__(
        self,
        source: NamedVolumes,
        fill: Callable[[Array, int], None],
        view: Callable[[int], Array | None] | None = None,
    ) -> None:
        self.remaining, self._source, self._fill, self._view = source.n_timepoints, source, fill, view

    def readinto(self, out: Array) -> None:
        """Fill `out` with the next volumes.

        ``out``, (n_voxels,) or (k, n_voxels): C-contiguous, of the source's stored dtype. Each row becomes
        one volume in on-disk order (x fastest), unscaled, in native byte order.

        Raises DamagedImageError: the file ends early or a checksum is wrong; the latter at the last volume at
        the latest.
        Raises ParameterError: `out` does not fit, or fewer volumes are left than it asks for.
        """
        name, dtype, n_voxels = self._source.name, self._source.dtype, self._source.n_voxels
        fits = out.ndim in (1, 2) and out.shape[-1] == n_voxels and out.dtype == dtype
        if not (fits and out.flags.c_contiguous and out.flags.writeable):
            wanted = f"a writeable C-contiguous {dtype} array of shape ({n_voxels},) or (k, {n_voxels})"
            raise ParameterError(f"{name} is read into {wanted}, not into {out.dtype} {out.shape}")
        rows = out.reshape(-1, n_voxels)
        if len(rows) > self.remaining:
            raise ParameterError(f"{name} has {self.remaining} volumes left, not {len(rows)}")
        self.remaining -= len(rows)
        self._fill(rows, self.remaining)

    def seen(self, room: Array) -> Array:
        if self._view is None:
            return super().seen(room)
        found = self._view(self.remaining - 1)
        if found is None:
            return super().seen(room[:1])
        self.remaining -= 1
        return found[None]


@dataclass(frozen=True)
class Span:
    """The same voxels of every volume of what can be read at any place."""

    n_timepoints: int
    n_voxels: int
    dtype: np.dtype[Any]
    read: Callable[[int, Array], None]
    """Fills a row, (n_voxels,), from the volume of that number."""
    during: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    """Entered for a pass."""
    reads_ahead = False
    reading_bytes = 0

    @contextlib.contextmanager
    def volumes(self) -> Iterator[VolumesReader]:
        """A pass from the first volume on."""
        with self.during():
            yield _SpanReader(self)


class _SpanReader(VolumesReader):
    def __init__(self, span: Span) -> None:
        self._span, self._next = span, 0

    def readinto(self, out: Array) -> None:
        for row in out.reshape(-1, self._span.n_voxels):
            self._span.read(self._next, row)
            self._next += 1
