"""Results: those of requests that were carried out before.

Covers: what identifies a result, whether the image is still what it was, telling callbacks of a
result that was found. Does not cover: keeping results (``kept``), carrying requests out
(``signals``).

A key is a digest of everything that the numbers depend on: the image's fingerprint, the regions,
the parameters and the versions of what computes. How the work is done is no part of it, because the
numbers do not depend on that.
"""

import contextlib
import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from hashlib import blake2b
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from sharedmask._version import __version__
from sharedmask.compute.progress import progress_to
from sharedmask.compute.request import Request
from sharedmask.compute.signals import notify
from sharedmask.sources.source import Source
from sharedmask.storage.kept import Cache
from sharedmask.typing import Array

Computation = Callable[[], list[Array]]

_NUMBERS = 1  # of the way in which results come about; another one makes all entries miss
HOW = frozenset({"n_jobs", "prefer", "progress", "on_result", "label", "operation"})
"""Fields of a request that say how it is carried out: the only ones that are not in the key."""

# A file that is written twice within one tick of the kernel's clock has one time for both.
_TICK = 0.02
_COARSE_TICK = 2.0


@dataclass(frozen=True)
class Lookup:
    """A request of an image, and all that its numbers depend on."""

    source: Source
    fingerprint: str
    """The source's, taken before the image was read."""
    request: Request
    voxels: NDArray[np.intp] | None = None
    """Those that the image holds, where a request for others would be refused."""

    @property
    def identity(self) -> tuple[Any, ...]:
        """The image and what is asked of it, out of strings and numbers."""
        request, dtype = self.request, self.request.dtype
        asked = {one.name: getattr(request, one.name) for one in fields(request) if one.name not in HOW}
        asked["regions"] = request.regions.digest
        if not (dtype is None or (isinstance(dtype, str) and dtype == "auto")):
            asked["dtype"] = np.dtype(dtype)  # which has many names
        image = self.fingerprint, self.source.ndim, self.source.scaled_dtype, self.voxels
        identity: tuple[Any, ...] = _plain((image, asked))
        return identity

    @property
    def key(self) -> str:
        """40 hexadecimal digits that differ where the numbers may."""
        parts = self.identity, _versions(self.request.cleaning.needed)
        return blake2b(repr(parts).encode(), digest_size=20).hexdigest()

    def notify(self, results: list[Array]) -> None:
        """Call the request's callbacks as if the results had just been computed."""
        request = self.request
        n_regions = len(request.regions)
        with progress_to(request.progress, n_regions, "mask") as tell:
            tell(n_regions)
        notify(results if request.strategy is None else list(results[0].T), request)


def get_or_compute(cache: Cache, lookup: Lookup, compute: Computation) -> list[Array]:
    """What ``compute`` returns, or returned for the same request of the same image."""

    def settled() -> list[Array]:
        time.sleep(_unsettled(lookup.source))
        return compute()

    results, was_there = cache.get_or_compute(lookup.key, settled, lambda: _is_unchanged(lookup))
    if was_there:
        lookup.notify(results)
    return results


def identity(source: Source) -> str | None:
    """The fingerprint of files about to be read; None if they may still change without a trace."""
    return None if _unsettled(source) else source.fingerprint


def _is_unchanged(lookup: Lookup) -> bool:
    with contextlib.suppress(OSError):  # the file is gone
        return lookup.source.fingerprint == lookup.fingerprint
    return False


def _unsettled(source: Source) -> float:
    """Seconds until a further change of the files would change their time."""
    with contextlib.suppress(OSError):
        latest = max((os.stat(path).st_mtime_ns for path in source.paths), default=0)
        tick = _TICK if latest % 10**9 else _COARSE_TICK
        return max(0.0, tick - abs(time.time() - latest / 1e9))
    return 0.0


def _plain(value: Any) -> Any:
    """The same out of strings and numbers, whose ``repr`` has all their bits."""
    if isinstance(value, np.ndarray):
        content = blake2b(np.ascontiguousarray(value).tobytes(), digest_size=20).hexdigest()
        return value.dtype.str, value.shape, content
    if isinstance(value, np.dtype):
        return value.str
    if isinstance(value, np.generic):
        return value.item()
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be part of a key")


@functools.cache
def _versions(cleaning: bool) -> tuple[str | int, ...]:
    """Of what the last bits may depend on."""
    own = (_NUMBERS, __version__, np.__version__, nibabel.__version__)
    if not cleaning:
        return own
    from importlib.metadata import version  # nilearn and scipy themselves cost a second to import

    return *own, version("nilearn"), version("scipy")
