"""Source to voxel-major rows: volumes are decoded in one thread while others transpose.

Covers: the pipeline, its buffers and their size. Does not cover: decoding (``source``), where
the rows live (the caller gives them), what is done with them.

::

    decode ──> block of volumes  (k, n_voxels) ──> transpose, tile by tile ──> rows (n_voxels, t)
               two of them, in turn

A block holds only the voxels asked for: without a selection volumes are decoded straight into it,
with one they pass through a buffer that stays in the cache, a few at a time. Who has one core does both in
turn.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharedmask.sources.values import Conversion, all_finite, convert
from sharedmask.sources.volumes import Volumes, VolumesReader
from sharedmask.system.process import Caller, n_cpus
from sharedmask.system.threads import CannotStartThreadError, Threads, start
from sharedmask.typing import Array

# Few volumes make short runs in each row, many make large buffers. Measured on 2 to 4 byte
# values: from 16 volumes on the transposition keeps pace with the decompression.
_BLOCK_BYTES = 24 * 2**20
_BLOCK_VOLUMES = (16, 64)
_TILE_VOXELS = 2048
_N_BLOCKS = 2
_SMALL = 2**18  # bytes of an image
# Each call has its own price, and what is read should stay in the cache until it is picked out of.
_READ_BYTES = 3 * 2**19
Blocks = Iterator[tuple[int, Array]]
"""The number of a block's first volume, and its values."""


def block_volumes(n_selected: int, dtype: np.dtype[Any], n_timepoints: int) -> int:
    """Volumes per block."""
    fitting = _BLOCK_BYTES // max(n_selected * dtype.itemsize, 1)
    least, most = _BLOCK_VOLUMES
    return min(max(least, min(fitting, most)), n_timepoints)


def buffer_bytes(source: Volumes, n_selected: int) -> int:
    """Memory that :func:`load` takes besides the rows it fills."""
    k = block_volumes(n_selected, source.dtype, source.n_timepoints)
    n_values = _N_BLOCKS * k * n_selected + min(k, _together(source)) * source.n_voxels
    return n_values * source.dtype.itemsize + source.reading_bytes


def _together(source: Volumes) -> int:
    """Volumes that are read at once, where some of their voxels are asked for."""
    return max(1, _READ_BYTES // (source.n_voxels * source.dtype.itemsize))


def _is_small(source: Volumes) -> bool:
    """Whether it is decoded before a thread would have begun."""
    return source.n_timepoints * source.n_voxels * source.dtype.itemsize <= _SMALL


def load(
    source: Volumes,
    rows: Array,
    *,
    select: NDArray[np.intp] | None = None,
    conversion: Conversion | None = None,
    n_threads: int = 1,
    on_volumes: Callable[[int], None] | None = None,
    begun: Blocks | None = None,
) -> bool:
    """Fill ``rows``, shape (n_selected, n_timepoints), in one pass over ``source``; whether all are finite.

    Parameters
    ----------
    rows : ndarray
        Row ``i`` becomes the series of voxel ``select[i]``, or of voxel ``i``.
    select : ndarray of int, optional
        Voxel numbers; any order, repeats allowed.
    conversion : Conversion, optional
        Applied on the way; None keeps the stored values, and then ``rows.dtype`` is theirs.
    n_threads : int
        Threads that transpose; more than one pays only where decoding costs nothing.
    on_volumes : callable, optional
        Told how many volumes are done.
    begun : iterator, optional
        Of :func:`blocks` of this source and selection, where that has begun already.
    """
    finite = True
    with (
        blocks(source, select) if begun is None else nullcontext(begun) as decoded,
        Threads(n_threads, "sharedmask-transpose") if n_threads > 1 else nullcontext() as threads,
    ):
        for start, block in decoded:
            write = partial(_write, conversion, block, rows[:, start : start + len(block)].T)
            tiles = [slice(a, a + _TILE_VOXELS) for a in range(0, block.shape[1], _TILE_VOXELS)]
            shares = (tiles[i::n_threads] for i in range(n_threads))
            done = list((map if threads is None else threads.map)(write, shares))
            finite = finite and all(done)
            if on_volumes is not None:
                on_volumes(start + len(block))
    return finite


def _write(conversion: Conversion | None, block: Array, target: Array, tiles: list[slice]) -> bool:
    """Transpose ``tiles`` of a block; whether their true values are finite, looked at while in the cache."""
    finite, stored = True, block.dtype.kind == "f"
    for tile in tiles:
        if conversion is None:
            target[:, tile] = block[:, tile]
            finite = (not stored or all_finite(block[:, tile])) and finite
        else:
            finite = convert(block[:, tile], target[:, tile], conversion) and finite
    return finite


def blocks(
    source: Volumes, select: NDArray[np.intp] | None, step: int | None = None
) -> AbstractContextManager[Blocks]:
    """Blocks of the voxels ``select`` (None: all) of ``step`` volumes each, decoded one ahead from now on.

    Yields
    ------
    (int, ndarray)
        The number of a block's first volume, and its stored values, (n_volumes, n_selected), valid
        until the next is asked for; there are two of them.
    """
    n_selected = source.n_voxels if select is None else len(select)
    step = block_volumes(n_selected, source.dtype, source.n_timepoints) if step is None else step
    return _Decoder(source, select, [np.empty((step, n_selected), source.dtype) for _ in range(_N_BLOCKS)])


class _Decoder:
    """Decodes in a thread of its own, one block ahead; as it is asked for where that is as fast."""

    def __init__(self, source: Volumes, select: NDArray[np.intp] | None, blocks: list[Array]) -> None:
        self._source, self._select, self._blocks = source, select, blocks
        self._step = len(blocks[0])
        self._caller = Caller()
        self._free: queue.SimpleQueue[Array | None] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[tuple[int, Array] | BaseException | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Blocks:
        for block in self._blocks:
            self._free.put(block)
        if _is_small(self._source) or n_cpus() == 1:
            return self._in_turn()
        thread = threading.Thread(target=self._decode, name="sharedmask-decode", daemon=True)
        try:
            start(thread)
        except CannotStartThreadError:
            return self._in_turn()
        self._thread = thread
        return self._decoded()

    def __exit__(self, *_: object) -> None:
        self._free.put(None)
        if self._thread is not None:
            self._thread.join()

    def _decoded(self) -> Blocks:
        while (message := self._full.get()) is not None:
            if isinstance(message, BaseException):
                raise message
            yield message
            self._give_back(message)

    def _in_turn(self) -> Blocks:
        for piece in self._read():
            yield piece
            self._give_back(piece)

    def _give_back(self, piece: tuple[int, Array]) -> None:
        self._caller.check()
        _, block = piece
        self._free.put(block.base if block.base is not None else block)

    def _decode(self) -> None:
        try:
            for piece in self._read():
                self._full.put(piece)
            self._full.put(None)
        except BaseException as error:
            self._full.put(error)

    def _read(self) -> Blocks:
        together = 0 if self._select is None else min(_together(self._source), self._step)
        room = np.empty((together, self._source.n_voxels), self._source.dtype)
        with self._source.volumes() as reader:
            for number in range(0, self._source.n_timepoints, self._step):
                block = self._free.get()
                if block is None:
                    return
                block = block[: self._source.n_timepoints - number]
                self._fill(reader, block, room)
                yield number, block

    def _fill(self, reader: VolumesReader, block: Array, room: Array) -> None:
        if self._select is None:
            reader.readinto(block)
            return
        done = 0
        while done < len(block):
            volumes = reader.seen(room[: len(block) - done])
            selected = block[done : done + len(volumes)]
            np.take(volumes, self._select, axis=1, out=selected, mode="clip")
            done += len(volumes)
