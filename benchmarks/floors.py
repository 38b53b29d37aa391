"""What nothing can be faster than: decompressing, reading, copying, transposing.

Covers: each floor as a function, and its time. Does not cover: what is compared with it (``limits``,
``experiment``).
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.variants import decompress

Array = NDArray[Any]

_REPEATS = 5
_PIECE = 256 * 1024
_TILE_VOXELS = 512


def read(run: Path) -> None:
    """Read the file into a small buffer, again and again."""
    piece = bytearray(_PIECE)
    with open(run, "rb", buffering=0) as file:
        while file.readinto(piece):
            pass


def seconds_to_decompress(run: Path) -> float:
    """Of a compressed run; of another one, to read it."""
    return seconds(lambda: decompress(run) if run.suffix == ".gz" else read(run))


def seconds_to_copy(nbytes: int) -> float:
    """Into fresh memory."""
    source = np.ones(nbytes, np.uint8)
    return seconds(source.copy)


def seconds(call: Callable[[], Any], repeats: int = _REPEATS) -> float:
    """Median of a few runs, after one that is not counted."""
    call()
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def transpose(blocks: Array, rows: Array) -> None:
    """Turn (n_volumes, n_voxels) into (n_voxels, n_volumes), tile by tile."""
    for start in range(0, len(rows), _TILE_VOXELS):
        tile = slice(start, start + _TILE_VOXELS)
        rows[tile] = blocks[:, tile].T
