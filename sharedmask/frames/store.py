"""The store of frames: all frames of a run, those that were transformed, and what is known of them.

Covers: the values of single frames and of blocks, its own copies of transformed frames, how
another process finds all this. Does not cover: where frames live (``backing``), choosing and walking
them (``sequence``).

::

    backing      (N, voxels)   the user's file as it is | a segment of shared memory | an unnamed file
    transformed  (N, voxels)   an unnamed file, in which only transformed frames take room
    metadata                   a segment with what is known of them; its handle is all that travels
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from nibabel.volumeutils import apply_read_scaling

from sharedmask.errors import AttachError, ClosedImageError, ParameterError
from sharedmask.frames import kernels
from sharedmask.frames.backing import Backing, checked_store, open_backing
from sharedmask.frames.metadata import Metadata
from sharedmask.records import dataclass
from sharedmask.sources.nifti import pack_header, unpack_header
from sharedmask.sources.source import Facts, FileSource, Source
from sharedmask.storage import mapped_file, memory, rows, segment
from sharedmask.storage.container import Geometry
from sharedmask.storage.mapped_file import FileHandle
from sharedmask.storage.registry import OwnedSegment, publish
from sharedmask.storage.segment import Handle
from sharedmask.storage.spill import Spill
from sharedmask.storage.views import SharedArray
from sharedmask.system.process import Lock
from sharedmask.typing import Array, NDArray

_ALONE = 16  # frames that are decoded by themselves; then loading all costs less
# What makes a view again, by the names that other processes are told.
_REOPEN = {"segment": segment.view_of, "file": mapped_file.file_view_of}
_REOPENED_BY = {reopen: name for name, reopen in _REOPEN.items()}


@dataclass(frozen=True)
class TransformedFrames:
    """The data set's own copies of frames; what is written to them is seen by all who attached."""

    origin: FileHandle
    frames: Array
    is_transformed: Array
    affines: Array

    @classmethod
    def attach(cls, origin: FileHandle) -> TransformedFrames:
        mapped = mapped_file.attach_file(origin)
        return cls(origin, *map(mapped.array, ("frames", "is_transformed", "motion_affines")))


class FrameStore:
    """All frames of a run; what selections of them share."""

    def __init__(
        self,
        facts: Facts,
        header: Any,
        metadata: Metadata,
        load: Callable[[], Backing],
        alone: int = 0,
        memory_limit: Any = None,
    ) -> None:
        self.facts, self.header, self.memory_limit = facts, header, memory_limit
        self._load, self._alone = load, alone  # frames that may yet be decoded before all are loaded
        self._loading, self._backing = Lock(), None if alone else load()
        self._metadata = metadata
        self._transformed: TransformedFrames | None = None
        self._spill: Spill | None = None
        self._segments: dict[bool, OwnedSegment] = {}
        self._handle: str | None = None
        self.total: NDArray[np.float64] | None = None
        """The sum of all frames, once it was needed; until one is transformed."""
        self._lock = Lock()
        self.closed = False

    @classmethod
    def open(cls, source: Source, metadata: Metadata, store: str, memory_limit: Any) -> FrameStore:
        """Map or load the frames of ``source``; later, where single frames can be decoded."""
        load = partial(open_backing, source, checked_store(store), memory_limit)
        alone = _ALONE if isinstance(source, FileSource) and source.points is not None else 0
        alone = 0 if store == "file" else alone
        return cls(source, source.header, metadata, load, alone, memory_limit)

    # --- facts ---

    @property
    def backing(self) -> Backing:
        """All frames, loaded."""
        with self._loading:
            if self._backing is None:
                self._backing = self._load()
            return self._backing

    @property
    def store(self) -> tuple[str, str]:
        """Where the frames live, and why there."""
        if self._backing is None:
            return "index", "a few frames are decoded from their file; for more, all are loaded"
        return self._backing.store

    @property
    def is_shared(self) -> bool:
        """Whether other processes can attach to them, once they are loaded."""
        return self._handle is not None or self.backing.rows.origin is not None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the true values."""
        return self.facts.scaled_dtype

    @property
    def metadata(self) -> Metadata:
        """What is known of the frames now."""
        if self._transformed is None:
            return self._metadata
        return replace(self._metadata, motion_affines=np.array(self._transformed.affines))

    def describe(self, overall: Mapping[str, Any]) -> None:
        """Add facts of the run as a whole, before anybody else has it."""
        assert self.is_owned
        self._metadata = self._metadata.updated(Metadata.checked(self.facts.shape, overall=overall))

    @property
    def is_owned(self) -> bool:
        """Whether nobody else transforms frames."""
        return self._handle is None

    @property
    def label(self) -> str:
        return os.path.basename(self.facts.name)

    @property
    def frame_bytes(self) -> int:
        """Of the true values of one frame."""
        return self.facts.n_voxels * self.dtype.itemsize

    # --- frames ---

    def row(self, number: int) -> Array:
        """The current values of a frame as they lie in their store, for the kernel's sake."""
        backing = self._usable()
        if self._transformed is not None and self._is_transformed(number):
            return np.asanyarray(self._transformed.frames[number])
        return np.asanyarray(backing.rows[number])

    def frame(self, number: int) -> Array:
        """True values, (X, Y, Z): a read-only view, or a fresh array of a scaled image."""
        if self._is_transformed(number):
            return self.row(number).reshape(self.facts.shape[:3], order="F")
        return self.original(number)

    def original(self, number: int) -> Array:
        """True values before any transform."""
        alone = self._decoded(number)
        if alone is not None:
            volume = alone.reshape(self.facts.shape[:3], order="F")
        else:
            volume = self._usable().rows[number].reshape(self.facts.shape[:3], order=self.backing.order)
        if not self.facts.is_scaled:
            return np.asanyarray(volume)
        return np.asarray(apply_read_scaling(volume, self.facts.slope, self.facts.inter))

    def _decoded(self, number: int) -> Array | None:
        """The stored values of a frame, decoded without the others while few are asked for."""
        if self.closed or self._backing is not None or self._alone < 1:
            return None
        assert isinstance(self.facts, FileSource)
        self._alone -= 1
        found = self.facts.volume(number)
        if found is not None:
            found.flags.writeable = False
        return found

    def stored(self, numbers: NDArray[np.intp]) -> Array | None:
        """The stored values of these frames, (X, Y, Z, k), if a view has them."""
        steps = _as_slice(numbers)
        return None if steps is None else self._volumes(self._usable().rows[steps])

    def view(self, numbers: NDArray[np.intp]) -> Array | None:
        """The true values of these frames, (X, Y, Z, k), if a view has them."""
        if self.facts.is_scaled or any(map(self._is_transformed, numbers.tolist())):
            return None
        return self.stored(numbers)

    def copy(self, numbers: NDArray[np.intp]) -> Array:
        """The true values of these frames in a fresh array, (X, Y, Z, k), volume after volume."""
        self._usable()
        block = self._volumes(np.empty((len(numbers), self.facts.n_voxels), self.dtype))
        for place, number in enumerate(numbers.tolist()):
            block[..., place] = self.frame(number)
        return block

    def _volumes(self, rows: Array) -> Array:
        shape = self.facts.shape[:3]
        if self.backing.order == "F":
            return rows.reshape(-1, *shape[::-1]).T
        return np.moveaxis(rows.reshape(-1, *shape), 0, 3)

    def _is_transformed(self, number: int) -> bool:
        return self._transformed is not None and bool(self._transformed.is_transformed[number])

    def _usable(self) -> Backing:
        if self.closed:
            raise ClosedImageError(f"{self.label} is closed: open it again with FrameDataset(...)")
        self.backing.check()
        return self.backing

    # --- transforms ---

    def transform(self, number: int, affine: Any, order: int) -> None:
        """Resample the original frame into the data set's own copy; the identity brings it back."""
        matrix = kernels.checked_affine(affine)
        with self._lock:
            original = self.original(number)
            spill = self._own_frames()
            changes = not np.array_equal(matrix, np.eye(4))
            if changes:
                values = kernels.resample(original, self.facts.affine, matrix, order, self.dtype)
                spill.write("frames", number, values.ravel(order="F"))
            spill.write("motion_affines", number, matrix)
            self.total = None
            spill.write("is_transformed", number, np.array([changes], np.uint8))

    def _own_frames(self) -> Spill:
        if not self.is_owned:
            raise ParameterError(f"{self.label} is another process's: only its owner transforms frames")
        if self._spill is None:
            self._spill = self._new_spill()
            self._transformed = TransformedFrames.attach(self._spill.handle)
        return self._spill

    def _new_spill(self) -> Spill:
        n_frames = self.facts.n_timepoints
        geometry: Geometry = {
            "motion_affines": ((n_frames, 4, 4), np.dtype(np.float64)),
            "is_transformed": ((n_frames,), np.dtype(np.uint8)),
            "frames": ((n_frames, self.facts.n_voxels), self.dtype),
        }
        spill = Spill(f"the transformed frames of {self.label}", geometry)
        given = self._metadata.motion_affines
        known = np.broadcast_to(np.eye(4), (n_frames, 4, 4)) if given is None else given
        spill.write("motion_affines", 0, known)
        return spill

    # --- life ---

    def close(self) -> None:
        """Release what this process made; views keep their bytes. Idempotent."""
        with self._lock:
            self.closed = True
            owned = None if self._backing is None else self._backing.owned
            held = [owned, self._spill, *self._segments.values()]
            self._spill, self._segments = None, {}
            for one in held:
                if one is not None:
                    one.release()

    @property
    def handle(self) -> str:
        """What leads another process of this user to the frames; a few hundred bytes.

        Raises
        ------
        ParameterError
            This process holds them alone.
        """
        self._usable()
        if self._handle is not None:
            return self._handle
        with self._lock:
            # What is in it changes once: when the first frame is transformed.
            key = self._transformed is not None
            if key not in self._segments:
                self._segments[key] = self._publish_metadata()
            return self._segments[key].handle.to_json()

    def _publish_metadata(self) -> OwnedSegment:
        if self.backing.store[0] == rows.PRIVATE:
            raise rows.not_shared_error(self.label, rows.PRIVATE)
        kind, content = pack_header(self.header)
        arrays = {**self._metadata.arrays, "header": np.frombuffer(content, np.uint8)}

        def fill(segment: dict[str, Array]) -> None:
            for name, values in arrays.items():
                segment[name][...] = values

        geometry = {name: (values.shape, values.dtype) for name, values in arrays.items()}
        meta = {
            "facts": self.facts.to_dict(),
            "header": kind,
            "rows": _place_of(self.backing.rows),
            "order": self.backing.order,
            "store": self.backing.store,
            "transformed": self._transformed and self._transformed.origin.to_json(),
        }
        store = self.backing.store[0] if self.backing.store[0] in memory.KINDS else "auto"
        return publish(self.label, geometry, fill, store, meta=meta)[0]

    @classmethod
    def attach(cls, handle: str) -> FrameStore:
        """The frames that another process owns.

        Raises
        ------
        AttachError
            It is gone, or the handle is of another machine, boot or user.
        """
        attachment = segment.attach(Handle.from_json(handle))
        try:
            store = cls._from_segment(attachment)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, AttachError):
                raise
            label = attachment.handle.label
            raise AttachError(f"{label} is no shared data set of frames: {error!r}") from error
        store._handle = handle
        return store

    @classmethod
    def _from_segment(cls, attachment: segment.Attachment) -> FrameStore:
        arrays = {name: attachment.view(name) for name in attachment.arrays}
        known = attachment.meta
        kind, text, offset, shape, strides, dtype = known["rows"]
        rows = _REOPEN[kind](text, offset, tuple(shape), tuple(strides), dtype)
        header = unpack_header(known["header"], arrays.pop("header").tobytes())
        backing = Backing(rows, known["order"], tuple(known["store"]))
        store = cls(Facts.from_dict(known["facts"]), header, Metadata.from_arrays(arrays), lambda: backing)
        if known["transformed"] is not None:
            store._transformed = TransformedFrames.attach(FileHandle.from_json(known["transformed"]))
        return store


def _place_of(rows: SharedArray) -> list[Any]:
    """What makes a view of these rows again, and its arguments, as JSON has them."""
    origin = rows.origin
    assert origin is not None
    reopen, text = origin.reopened_by()
    return [_REOPENED_BY[reopen], text, origin.place(rows), rows.shape, rows.strides, rows.dtype.str]


def _as_slice(numbers: NDArray[np.intp]) -> slice | None:
    """The slice that gives these numbers, in this order."""
    steps = np.unique(np.diff(numbers))
    if len(steps) > 1 or not len(numbers) or (len(steps) and steps[0] == 0):
        return None
    first, step = int(numbers[0]), int(steps[0]) if len(steps) else 1
    stop = int(numbers[-1]) + (1 if step > 0 else -1)
    return slice(first, None if stop < 0 else stop, step)
