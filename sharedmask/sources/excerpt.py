"""Excerpts: some volumes of an image, as an image.

Covers: which volumes, for each kind of source; few that lie far apart. Does not cover: reading (``source``),
where decoding can begin (``decoding``).
"""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field, replace
from functools import partial

import numpy as np

from sharedmask.errors import ImageError, ParameterError
from sharedmask.records import dataclass
from sharedmask.sources.source import ArraySource, FileSource, SeriesSource, Source
from sharedmask.sources.volumes import VolumeReader
from sharedmask.typing import Array, NDArray

_PIECE_VOLUMES = 16  # that are decoded in the time of one by itself, which needs whole pieces of its file


def excerpt(source: Source, volumes: slice | None) -> Source:
    """These volumes; the image itself for None.

    Raises ParameterError: they are no slice of consecutive volumes that the image has.
    Raises ImageError: the volumes do not lie one after the other.
    """
    if volumes is None:
        return source
    first, n_volumes = _checked(volumes, source)
    shape = (*source.shape[:-1], n_volumes)
    if type(source) is FileSource:
        place = source.offset + first * (source.nbytes // source.n_timepoints)
        return replace(
            source, shape=shape, offset=place, whole=source.whole or (source.offset, source.nbytes)
        )
    if isinstance(source, SeriesSource):
        items = source.items[first : first + n_volumes]
        files = tuple(file for item in items for file in item.files)
        return replace(source, shape=shape, items=items, files=files)
    if isinstance(source, ArraySource):
        values = np.asanyarray(source.dataobj).reshape(source.shape)
        return replace(source, shape=shape, dataobj=values[..., first : first + n_volumes])
    raise ImageError(f"volumes={volumes}: {source.name} is not stored volume by volume")


def is_cuttable(source: Source) -> bool:
    """Whether its volumes lie one after the other."""
    return type(source) is FileSource or isinstance(source, SeriesSource | ArraySource)


def _checked(volumes: slice, source: Source) -> tuple[int, int]:
    n_all, wanted = source.n_timepoints, "a slice of consecutive volumes, such as slice(100, 200)"
    try:
        start, stop = (
            default if given is None else operator.index(given)
            for given, default in ((volumes.start, 0), (volumes.stop, n_all))
        )
    except (AttributeError, TypeError) as error:
        raise ParameterError(f"volumes={volumes!r} is not {wanted}") from error
    if volumes.step not in (None, 1):
        raise ParameterError(f"volumes={volumes!r} is not {wanted}")
    if not 0 <= start < stop <= n_all:
        raise ParameterError(f"volumes={volumes!r}: {source.name} has volumes 0 to {n_all - 1}")
    return start, stop - start


# --- few volumes ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scattered(Source):
    """Volumes of a file, each of which can be decoded by itself."""

    whole: FileSource = field(repr=False)
    numbers: NDArray[np.intp] = field(repr=False)

    @contextmanager
    def _volumes(self) -> Iterator[VolumeReader]:
        yield VolumeReader(self, partial(self._fill, iter(self.numbers.tolist())))

    def _fill(self, numbers: Iterator[int], rows: Array, _: int) -> None:
        for row in rows:
            row[...] = self.whole.volume(next(numbers))


def with_volumes(source: Source, wanted: NDArray[np.intp]) -> tuple[Source, NDArray[np.intp]]:
    """An image that has the volumes of these numbers, ascending, and the numbers of all that it has.

    It has no others where each can be decoded by itself and they are few; else all from the first to the
    last.

    Raises ImageError: the volumes do not lie one after the other.
    """
    span = np.arange(wanted[0], wanted[-1] + 1)
    few = len(wanted) * _PIECE_VOLUMES <= len(span)
    if few and type(source) is FileSource and source.points is not None:
        facts = source.known(Source) | {"shape": (*source.shape[:-1], len(wanted))}
        return Scattered(**facts, whole=source, numbers=wanted), wanted
    return excerpt(source, slice(int(span[0]), int(span[-1]) + 1)), span
