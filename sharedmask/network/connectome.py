"""A connectome: the series of many subjects in HDF5 files, brought to shared memory in blocks.

Covers: Lacuna's format (one .h5 file or a directory of them), checked over all files; blocks of
subjects, decompressed once into standardised rows. Does not cover: lesions (``mapper``), the
arithmetic (``correlation``), the bytes of a subject (``subject``).

A file holds the datasets ``timeseries`` (subjects, timepoints, voxels), ``mask_indices`` (3, voxels)
or (voxels, 3), ``mask_affine`` (4, 4), and the attribute ``mask_shape``.
"""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from sharedmask.errors import ConnectomeError, MissingFileError, SourceChangedError
from sharedmask.network import correlation
from sharedmask.network.subject import Subject, subjects_in
from sharedmask.records import dataclass
from sharedmask.sources import hdf5, loader
from sharedmask.spaces.grid import Grid
from sharedmask.storage import container, segment
from sharedmask.storage.registry import publish
from sharedmask.storage.segment import Shared
from sharedmask.system import identity, monitor, settings
from sharedmask.system.identity import FileState
from sharedmask.system.process import cached_property
from sharedmask.typing import Array, NDArray
from sharedmask.workers import threaded

_DATASETS = ("timeseries", "mask_indices", "mask_affine")


@dataclass(frozen=True)
class File:
    """One file of a connectome."""

    path: Path
    n_subjects: int
    state: FileState
    """When its facts were read."""

    def fingerprint(self) -> bytes:
        """Of what tells it from another, wherever the connectome was moved in the meantime."""
        if settings.current().fingerprint == "content":
            with open(self.path, "rb", buffering=0) as file:
                return identity.content(file)
        return repr((self.path.name, self.state.nbytes, self.state.mtime_ns)).encode()

    def check(self, when: str) -> None:
        """Raise a SourceChangedError if it is not what it was."""
        if self.state.has_changed():
            raise SourceChangedError(f"{self.path} changed {when}")


@dataclass(frozen=True)
class Block:
    """Subjects ``start`` to ``stop`` of one file."""

    file: File
    start: int
    stop: int

    @property
    def n_subjects(self) -> int:
        return self.stop - self.start

    @property
    def name(self) -> str:
        return f"{self.file.path.name} {self.start}:{self.stop}"


@dataclass(frozen=True, eq=False)
class Connectome:
    """What all files of a connectome agree on."""

    files: tuple[File, ...]
    """In the order of their names."""
    grid: Grid
    voxels: NDArray[np.intp] = field(repr=False)
    """(n_voxels,): their numbers on the grid (``x + X * (y + Y * z)``), in the files' order."""
    n_timepoints: int
    dtype: np.dtype[Any]
    """Of the stored series."""

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, coordinates_axis: int | None = None) -> "Connectome":
        """Read and compare the facts of all files; no series is read.

        ``path``: a file, or a directory whose ``*.h5`` are the connectome.
        ``coordinates_axis``, {0, 1}: which axis of ``mask_indices`` has length 3, needed only where both
        have.

        Raises MissingFileError: there is no such file, or the directory holds no .h5 file.
        Raises ConnectomeError: a file is no connectome, or differs from the first in mask, affine or length.
        """
        opened = [_read_facts(file, coordinates_axis) for file in _files(Path(path).expanduser().absolute())]
        first = opened[0]
        for other in opened[1:]:
            _check_same(first, other)
        files = tuple(file for one in opened for file in one.files)
        return cls(files, first.grid, first.voxels, first.n_timepoints, first.dtype)

    @property
    def n_subjects(self) -> int:
        return sum(file.n_subjects for file in self.files)

    @property
    def n_voxels(self) -> int:
        return len(self.voxels)

    @property
    def subject_bytes(self) -> int:
        """What one subject takes in a block."""
        return self.n_voxels * (self.n_timepoints + 1) * 4

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Sorted voxel numbers, and where in the files' order each of them is."""
        order = np.argsort(self.voxels)
        return self.voxels[order], order

    def held(self, numbers: NDArray[np.intp]) -> NDArray[np.intp]:
        """Positions, in the files' order, of those of these voxels that the connectome has."""
        known, order = self._sorted
        found = np.searchsorted(known, numbers)
        found[found == len(known)] = 0
        return np.sort(order[found[known[found] == numbers]])

    @cached_property
    def digest(self) -> str:
        """What tells this connectome from another, or from itself rewritten."""
        digest = blake2b(digest_size=16)
        digest.update(repr((self.grid.shape, self.n_timepoints, self.dtype.str)).encode())
        digest.update((self.grid.affine + 0.0).tobytes() + self.voxels.tobytes())
        for file in self.files:
            digest.update(file.fingerprint())
        return digest.hexdigest()

    def blocks(self, most_bytes: int) -> list[Block]:
        """All subjects, file by file; a file of more than ``most_bytes`` in several blocks."""
        step = max(1, most_bytes // self.subject_bytes)
        return [
            Block(file, start, min(start + step, file.n_subjects))
            for file in self.files
            for start in range(0, file.n_subjects, step)
        ]

    def geometry(self, n_subjects: int) -> container.Geometry:
        """The arrays of a block in shared memory."""
        shape = (n_subjects, self.n_voxels, self.n_timepoints)
        single = np.dtype(np.float32)
        return {"series": (shape, single), "lengths": (shape[:2], single)}

    def buffer_bytes(self, n_threads: int) -> int:
        """What reading takes besides the block."""
        per_subject = self.n_timepoints * self.n_voxels * self.dtype.itemsize
        volumes = loader.block_volumes(self.n_voxels, self.dtype, self.n_timepoints) * 2
        streamed = min(volumes * self.n_voxels * self.dtype.itemsize, 2 * per_subject)
        return n_threads * (streamed + 4 * 2**20)


@dataclass(frozen=True)
class SharedBlock:
    """A block in memory: (subjects, voxels, timepoints) standardised rows, and their lengths."""

    series: Array
    lengths: Array
    attachment: segment.Attachment | None
    """None: no other process can have it."""

    def argument(self, name: str, for_processes: bool) -> Any:
        """The array ``name`` as a kernel gets it."""
        if for_processes and self.attachment is not None:
            return Shared(self.attachment.handle, name)
        return getattr(self, name)


@contextlib.contextmanager
def share_block(connectome: Connectome, block: Block, n_threads: int = 1) -> Iterator[SharedBlock]:
    """A block, read, decompressed and standardised once, in memory until the end of the context.

    Other processes can attach to it, unless the setting ``shared_memory`` is off. Of a file that is damaged,
    or changed since the connectome was opened, nothing is left behind.
    """
    geometry = connectome.geometry(block.n_subjects)
    if not settings.current().shared_memory:
        private = {name: np.empty(shape, dtype) for name, (shape, dtype) in geometry.items()}
        _read(block, private, n_threads)
        yield SharedBlock(**private, attachment=None)
        return
    owned, attachment = publish(block.name, geometry, lambda arrays: _read(block, arrays, n_threads))
    with owned:
        yield SharedBlock(attachment.arrays["series"], attachment.arrays["lengths"], attachment)


def _read(block: Block, arrays: Mapping[str, Array], n_threads: int) -> None:
    block.file.check("after it was opened: open it again")
    held = sum(array.nbytes for array in arrays.values())
    with (
        monitor.operation("load", f"loading {block.name}", held),
        subjects_in(block.file.path, block.start, block.stop) as found,
    ):
        threaded.run_threads(_fill, (arrays["series"], arrays["lengths"]), list(enumerate(found)), n_threads)
    block.file.check("while it was read")


def _fill(series: Array, lengths: Array, number: int, subject: Subject) -> None:
    loader.load(subject, series[number])
    lengths[number] = correlation.standardise(series[number])


# --- the facts of files --------------------------------------------------------------------------


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        # What a Mac leaves beside each file on a share (._part0.h5) is none.
        files = sorted(file for file in path.glob("*.h5") if not file.name.startswith("."))
        if not files:
            raise MissingFileError(f"{path} holds no .h5 file")
        return files
    if not path.exists():
        raise MissingFileError(f"{path} does not exist")
    return [path]


def _read_facts(path: Path, coordinates_axis: int | None) -> Connectome:
    state = FileState.now(path)
    with hdf5.open_facts(path, str(path), ConnectomeError) as file:
        missing = [name for name in _DATASETS if name not in file]
        if missing or "mask_shape" not in file.attrs:
            raise ConnectomeError(f"{path} is no connectome: it has no {(*missing, 'mask_shape')[0]}")
        series = file["timeseries"]
        if series.ndim != 3 or 0 in series.shape or series.dtype.kind not in "iuf":
            raise ConnectomeError(f"{path}: timeseries is {series.dtype} of shape {series.shape}, not "
                                  "numbers of (subjects, timepoints, voxels)")  # fmt: skip
        grid = _grid(path, file)
        n_subjects, n_timepoints, n_voxels = series.shape
        stored = file["mask_indices"]
        if n_voxels > math.prod(grid.shape) or stored.size != 3 * n_voxels:
            raise ConnectomeError(f"{path}: {stored.size // 3} mask_indices for {n_voxels} voxels of "
                                  f"timeseries, on a grid of {grid.shape}")  # fmt: skip
        (indices,) = hdf5.read_small({"mask_indices": stored}).values()
        voxels = _numbers(path, _coordinates(path, indices, coordinates_axis), grid)
        return Connectome((File(path, n_subjects, state),), grid, voxels, n_timepoints, series.dtype)


def _grid(path: Path, file: Any) -> Grid:
    shape, stored = np.ravel(file.attrs["mask_shape"]), file["mask_affine"]
    is_grid = shape.shape == (3,) and stored.shape == (4, 4) and min(shape) > 0
    affine = np.asarray(stored[()] if is_grid else np.nan, np.float64)
    if not np.isfinite(affine).all():
        raise ConnectomeError(f"{path}: mask_shape {shape.tolist()} and mask_affine are no grid")
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def _coordinates(path: Path, indices: Array, axis: int | None) -> Array:
    """(3, n_voxels), of either orientation."""
    if axis is None:
        if indices.shape == (3, 3):
            raise ConnectomeError(f"{path}: mask_indices of shape (3, 3) may be read either way: "
                                  "give coordinates_axis=0 if its rows are x, y and z, else 1")  # fmt: skip
        axis = 0 if indices.shape[:1] == (3,) else 1
    if indices.ndim != 2 or axis not in (0, 1) or indices.shape[axis] != 3 or indices.dtype.kind not in "iu":
        raise ConnectomeError(f"{path}: mask_indices is {indices.dtype} of shape {indices.shape}, not "
                              "integers of (3, voxels) or (voxels, 3)")  # fmt: skip
    return indices if axis == 0 else indices.T


def _numbers(path: Path, indices: Array, grid: Grid) -> NDArray[np.intp]:
    try:
        numbers = np.ravel_multi_index(tuple(indices.astype(np.intp)), grid.shape, order="F")
    except ValueError as error:
        raise ConnectomeError(f"{path}: mask_indices reach outside of mask_shape {grid.shape}") from error
    if len(np.unique(numbers)) < len(numbers):
        raise ConnectomeError(f"{path}: mask_indices name a voxel twice")
    return np.asarray(numbers, dtype=np.intp)


def _check_same(first: Connectome, other: Connectome) -> None:
    name, reference = other.files[0].path, first.files[0].path
    if not first.grid.matches(other.grid):
        raise ConnectomeError(
            f"{name} and {reference} lie on different grids:\n  {other.grid}\n  {first.grid}"
        )
    if not np.array_equal(first.voxels, other.voxels):
        raise ConnectomeError(f"{name} and {reference} have different mask_indices")
    if first.n_timepoints != other.n_timepoints:
        raise ConnectomeError(
            f"{name} has {other.n_timepoints} timepoints per subject, {reference} {first.n_timepoints}"
        )
