"""Source to voxel-major rows: volumes are decoded in one thread while others transpose.

Covers: the pipeline, its buffers and their size. Does not cover: decoding (``source``), where
the rows live (the caller gives them), what is done with them.

::

    decode ──> volumes (k, n_voxels) ──> block (k, n_selected) ──> transpose, tile by tile ──> rows
               some of them, in turn

Without a selection the volumes are the block. With one they pass through buffers that stay in the cache, and
who asks for blocks picks the voxels out of them: decoding takes longer than all that is done with what was
decoded, so its thread does nothing else. What is decoded on cores of its own is picked out of by that thread.
Who has one core does both in turn.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np

from sharedmask.sources.values import Conversion, all_finite, true_values
from sharedmask.sources.volumes import Volumes, VolumesReader
from sharedmask.system.process import Caller, n_cpus
from sharedmask.system.threads import CannotStartThreadError, Threads, start
from sharedmask.typing import Array, NDArray

# Few volumes make short runs in each row, many make large buffers. Measured on 2 to 4 byte
# values: from 16 volumes on the transposition keeps pace with the decompression.
_BLOCK_BYTES = 24 * 2**20
_BLOCK_VOLUMES = (16, 64)
_TILE_VOXELS = 8192
_WORD = 8  # bytes
_N_BLOCKS = 2
_SMALL = 2**18  # bytes of an image
# Each call has its own price, and what is read should stay in the cache until it is picked out of: in the
# core's own, or in that of all cores where another picks, which has to be woken each time.
_READ_BYTES = 3 * 2**19
_AHEAD_BYTES = 4 * 2**20
_AHEAD_PARTS = 32  # of an image, at least: buffers of small ones are small
Blocks = Iterator[tuple[int, Array]]
"""The number of a block's first volume, and its values."""


def block_volumes(n_selected: int, dtype: np.dtype[Any], n_timepoints: int) -> int:
    """Volumes per block."""
    fitting = _BLOCK_BYTES // max(n_selected * dtype.itemsize, 1)
    least, most = _BLOCK_VOLUMES
    return min(max(least, min(fitting, most)), n_timepoints)


def buffer_bytes(source: Volumes, n_selected: int | None, n_threads: int = 1) -> int:
    """Memory that :func:`load` takes besides the rows of so many voxels (None: all) that it fills.

    Each of the threads that transpose has a tile of its own, as far as there are tiles.
    """
    k = block_volumes(n_selected or source.n_voxels, source.dtype, source.n_timepoints)
    n_values = _N_BLOCKS * k * source.n_voxels
    if n_selected is not None and source.reads_ahead:
        n_values = _N_BLOCKS * k * n_selected + min(k, _fitting(source, _READ_BYTES)) * source.n_voxels
    elif n_selected is not None:
        n_values = k * n_selected + _N_BLOCKS * min(k, _ahead_volumes(source)) * source.n_voxels
    tile = _tile(n_selected or source.n_voxels)
    n_tiles = max(1, min(n_threads, -(-(n_selected or source.n_voxels) // tile)))
    return (n_values + n_tiles * k * tile) * source.dtype.itemsize + source.reading_bytes


def _tile(n_voxels: int) -> int:
    """Voxels that are transposed at a time."""
    return max(1, min(_TILE_VOXELS, n_voxels))


def _ahead_volumes(source: Volumes) -> int:
    """Volumes that are read ahead at once, where some of their voxels are asked for."""
    return max(1, min(_fitting(source, _AHEAD_BYTES), source.n_timepoints // _AHEAD_PARTS))


def _fitting(source: Volumes, nbytes: int) -> int:
    return max(1, nbytes // (source.n_voxels * source.dtype.itemsize))


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
            shares = (slice(i, None, n_threads) for i in range(n_threads))
            done = list((map if threads is None else threads.map)(write, shares))
            finite = finite and all(done)
            if on_volumes is not None:
                on_volumes(start + len(block))
    return finite


def _write(conversion: Conversion | None, block: Array, target: Array, share: slice) -> bool:
    """Transpose a share of a block's tiles; whether the true values of a share are finite."""
    finite, together = True, _WORD // block.itemsize
    if conversion is None:  # whole volumes are looked at in a third of the time that tiles take
        finite = block.dtype.kind != "f" or all_finite(block[share])
    size = _tile(block.shape[1])
    room = np.empty((len(block) // max(together, 1), size, together), block.dtype)
    for first in range(0, block.shape[1], size)[share]:
        tile, fine = slice(first, first + size), True
        values = block[:, tile]
        if conversion is not None:
            values, fine = true_values(values, conversion)
        _transpose(values, target[:, tile], room)
        finite = fine and finite
    return finite


def _transpose(values: Array, target: Array, room: Array) -> None:
    """Write values that lie voxel by voxel to a place where they lie volume by volume.

    Those of a voxel that go into a word are put together first: numpy moves words in a third less time.
    """
    together = room.shape[2]
    n_whole = len(values) // together * together if together > 1 else 0
    if n_whole and values.dtype == target.dtype == room.dtype and target.strides[0] == target.itemsize:
        words = room[:, : values.shape[1]]
        for number in range(together):
            words[..., number] = values[number:n_whole:together]
        target[:n_whole].T.view(np.uint64).T[...] = words.view(np.uint64)[..., 0]
        values, target = values[n_whole:], target[n_whole:]
    np.copyto(target, values, casting="unsafe")


def blocks(
    source: Volumes, select: NDArray[np.intp] | None, step: int | None = None
) -> AbstractContextManager[Blocks]:
    """Blocks of the voxels ``select`` (None: all) of ``step`` volumes each, decoded ahead from now on.

    Yields
    ------
    (int, ndarray)
        The number of a block's first volume, and its stored values, (n_volumes, n_selected), valid
        until the next is asked for.
    """
    n_selected = source.n_voxels if select is None else len(select)
    step = block_volumes(n_selected, source.dtype, source.n_timepoints) if step is None else step
    return _Decoder(source, select, step)


class _Decoder:
    """Decodes in a thread of its own, some volumes ahead; as it is asked for where that is as fast."""

    def __init__(self, source: Volumes, select: NDArray[np.intp] | None, step: int) -> None:
        self._source, self._select, self._step = source, select, step
        self._picks_there = source.reads_ahead and select is not None
        self._caller = Caller()
        self._free: queue.SimpleQueue[Array | None] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[Array | BaseException | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Blocks:
        has_begun = self._begins_thread()
        volumes = self._ahead() if has_begun else self._in_turn()
        is_picked = self._select is None or (has_begun and self._picks_there)
        return self._numbered(volumes) if is_picked else self._picked(volumes)

    def __exit__(self, *_: object) -> None:
        self._free.put(None)
        if self._thread is not None:
            self._thread.join()

    def _begins_thread(self) -> bool:
        if _is_small(self._source) or n_cpus() == 1:
            return False
        thread = threading.Thread(target=self._decode, name="sharedmask-decode", daemon=True)
        try:
            start(thread)
        except CannotStartThreadError:
            return False
        self._thread = thread
        return True

    def _numbered(self, volumes: Iterator[Array]) -> Blocks:
        number = 0
        for block in volumes:
            yield number, block
            self._caller.check()
            number += len(block)

    def _picked(self, volumes: Iterator[Array]) -> Blocks:
        block = self._block()
        number = done = 0
        for several in volumes:
            while len(several):
                piece, several = several[: self._step - done], several[self._step - done :]
                self._pick(piece, block[done : done + len(piece)])
                done += len(piece)
                if done == self._step or number + done == self._source.n_timepoints:
                    yield number, block[:done]
                    self._caller.check()
                    number, done = number + done, 0

    def _pick(self, volumes: Array, out: Array) -> None:
        assert self._select is not None
        np.take(volumes, self._select, axis=1, out=out, mode="clip")

    def _block(self) -> Array:
        """For voxels that are picked out."""
        n_selected = self._source.n_voxels if self._select is None else len(self._select)
        return np.empty((self._step, n_selected), self._source.dtype)

    def _room(self, together: int) -> Array:
        """For volumes that are read at once: so many, where they are picked out of."""
        k = self._step if self._select is None else min(self._step, together)
        return np.empty((k, self._source.n_voxels), self._source.dtype)

    def _in_turn(self) -> Iterator[Array]:
        room = self._room(_fitting(self._source, _READ_BYTES))
        with self._source.volumes() as reader:
            left = self._source.n_timepoints
            while left:
                volumes = room[:left]
                if self._select is None:
                    reader.readinto(volumes)
                else:
                    volumes = reader.seen(volumes)
                left -= len(volumes)
                yield volumes

    def _ahead(self) -> Iterator[Array]:
        while (message := self._full.get()) is not None:
            if isinstance(message, BaseException):
                raise message
            yield message
            self._free.put(message.base)

    def _decode(self) -> None:
        try:
            for _ in range(_N_BLOCKS):
                self._free.put(
                    self._block() if self._picks_there else self._room(_ahead_volumes(self._source))
                )
            passing = self._room(_fitting(self._source, _READ_BYTES)) if self._picks_there else None
            left = self._source.n_timepoints
            with self._source.volumes() as reader:
                while left:
                    room = self._free.get()
                    if room is None:
                        return
                    volumes = room[:left]
                    if passing is None:
                        reader.readinto(volumes)
                    else:
                        self._fill(reader, volumes, passing)
                    left -= len(volumes)
                    self._full.put(volumes)
            self._full.put(None)
        except BaseException as error:
            self._full.put(error)

    def _fill(self, reader: VolumesReader, block: Array, passing: Array) -> None:
        done = 0
        while done < len(block):
            volumes = reader.seen(passing[: len(block) - done])
            self._pick(volumes, block[done : done + len(volumes)])
            done += len(volumes)
