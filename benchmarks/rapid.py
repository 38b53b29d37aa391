"""Decoding one gzip file on several cores, by rapidgzip where it is installed.

Covers: decompressing alone, extracting through the same pipeline as ``sharedmask.extract``. Does
not cover: the comparison (``limits``). Without an index sharedmask itself decodes with isal, on one core.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import variants
from sharedmask.sources import loader
from sharedmask.sources.volumes import VolumesReader

_PIECE = 4 * 2**20
_DATA_OFFSET = 352
ALL_CORES = 0


def is_installed() -> bool:
    return find_spec("rapidgzip") is not None


def decompress(run: Path, n_cores: int) -> None:
    """Into a small buffer, again and again; by isal where rapidgzip is not installed."""
    if not is_installed():
        variants.decompress(run)
        return
    piece = bytearray(_PIECE)
    with _opened(run, n_cores) as file:
        while file.readinto(piece):
            pass


def _opened(run: Path, n_cores: int) -> Any:
    import rapidgzip

    return rapidgzip.open(str(run), parallelization=n_cores)


def extract(run: Path, shape: tuple[int, ...], voxels: NDArray[np.intp]) -> NDArray[np.float32]:
    """The series of voxels of a generated run, (n_voxels, n_timepoints)."""
    rows = np.empty((len(voxels), shape[3]), np.float32)
    loader.load(_Volumes(run, shape), rows, select=voxels)
    return rows


class _Volumes(VolumesReader):
    """The volumes of a generated run, as loading asks for them."""

    reads_ahead = False
    dtype = np.dtype(np.float32)

    def __init__(self, run: Path, shape: tuple[int, ...]) -> None:
        self._run = run
        self.n_voxels, self.n_timepoints = int(np.prod(shape[:3])), shape[3]

    @contextmanager
    def volumes(self) -> Iterator["_Volumes"]:
        with _opened(self._run, ALL_CORES) as self._file:
            self._file.read(_DATA_OFFSET)
            yield self

    def readinto(self, out: NDArray[Any]) -> None:
        view = memoryview(out).cast("B")
        while len(view):
            view = view[self._file.readinto(view) :]
