"""Excerpts: some consecutive volumes of an image, as an image.

Covers: which volumes, for each kind of source. Does not cover: reading (``source``), where decoding can begin
(``decoding``).
"""

import operator
from dataclasses import replace

import numpy as np

from sharedmask.errors import ImageError, ParameterError
from sharedmask.sources.source import ArraySource, FileSource, SeriesSource, Source


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
