"""Holding an image: the rows of its voxels in a store, all of them or nothing.

Covers: which store an image goes to and why, what that takes, filling it, attaching to it like
everyone else; holding the voxels of one call; reading volumes back. Does not cover: when an image is
loaded and closed (``image``), the decoding pipeline (``loader``, ``rechunk``), where bytes live
(``memory``, ``disk``, ``mapped_file``), who cleans up after a crash (``registry``).

Of an image on disk, or in its own file, the segment that is shared is a header only, which names
the file: handles, records and what happens at a death are the same for all stores.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharedmask.errors import AttachError, DamagedImageError, ImageError, OutsideImageError, ParameterError
from sharedmask.regions.regions import Regions
from sharedmask.sources import loader, rechunk
from sharedmask.sources import values as kernels
from sharedmask.sources.source import ArraySource, Facts, FileLayout, Source
from sharedmask.sources.values import Conversion
from sharedmask.storage import container, disk, memory, segment
from sharedmask.storage.mapped_file import FileIdentity
from sharedmask.storage.registry import OwnedSegment
from sharedmask.storage.segment import Attachment, ExternalArrays, Shared
from sharedmask.system import process, settings
from sharedmask.system.budget import MemoryBudget
from sharedmask.typing import Array

STORES = (*memory.KINDS, disk.KIND, "file")
PRIVATE = "private"
_INSTEAD = "store='disk' takes little, and extract() holds the masks' voxels only"

Voxels = NDArray[np.intp]


@dataclass(frozen=True)
class Rows:
    """The series of an image's voxels: where they are, and what their values mean."""

    facts: Facts
    array: Array
    finite: bool
    voxels: NDArray[np.intp] | None = None
    """Sorted numbers of the voxels held, one per row; None for all of the image's."""
    shared: Shared | None = None
    attachment: Attachment | None = None
    """Where they are attached; without it a view could not be made once the owner is gone."""
    volumes: Array | None = None
    """(n_timepoints, n_voxels), of an image that is mapped volume by volume; ``array`` is a view of it."""

    @classmethod
    def attached(cls, attachment: Attachment) -> "Rows":
        """The rows of a shared image.

        Raises
        ------
        AttachError
            What is shared is no image.
        """
        handle, arrays = attachment.handle, attachment.arrays
        try:
            facts, finite = Facts.from_dict(attachment.meta["facts"]), bool(attachment.meta["finite"])
            if "volumes" in arrays:
                by_volume, shared = arrays["volumes"], Shared(handle, "volumes")
                return cls(facts, by_volume.T, finite, None, shared, attachment, by_volume)
            shared = Shared(handle, "rows")
            return cls(facts, arrays["rows"], finite, arrays.get("voxels"), shared, attachment)
        except (KeyError, TypeError, ValueError) as error:
            raise AttachError(f"{handle.label} is no shared image: {error!r}") from error

    def positions(self, regions: Regions) -> NDArray[np.intp]:
        """Row numbers of all regions' voxels, one region after the other.

        Raises
        ------
        OutsideImageError
            Naming the first region with voxels that are not held, and how many.
        """
        wanted = regions.indices
        if self.voxels is None:
            return wanted
        found = np.searchsorted(self.voxels, wanted)
        found[found == len(self.voxels)] = 0
        outside = self.voxels[found] != wanted
        if outside.any():
            first = int(np.searchsorted(regions.offsets, np.argmax(outside), side="right")) - 1
            span = slice(regions.offsets[first], regions.offsets[first + 1])
            raise OutsideImageError(
                f"mask {regions.names[first]} has {int(outside[span].sum())} of its {regions.sizes[first]} "
                f"voxels outside of the mask_img with which {self.facts.name} was loaded"
            )
        return found


def geometry_of(facts: Facts, voxels: Voxels | None) -> container.Geometry:
    n_rows = facts.n_voxels if voxels is None else len(voxels)
    rows = ((n_rows, facts.n_timepoints), facts.dtype)
    return {"rows": rows} if voxels is None else {"rows": rows, "voxels": (voxels.shape, voxels.dtype)}


def projected(source: Source, voxels: Voxels | None) -> int:
    """Bytes of memory that an image takes while it is loaded into shared memory."""
    geometry = geometry_of(source, voxels)
    return container.projected(geometry) + loader.buffer_bytes(source, geometry["rows"][0][0])


def choose(asked: str, source: Source, voxels: Voxels | None, budget: MemoryBudget) -> tuple[str, str]:
    """The store, and the reason.

    ``"auto"`` is shared memory if the image fits in what may be used, and the disk if not.
    """
    if asked != "auto":
        return asked, "asked for"
    held = container.projected(geometry_of(source, voxels))
    if reason := budget.why_on_disk(held, projected(source, voxels)):
        return disk.KIND, reason
    if not settings.current().shared_memory:
        return PRIVATE, "shared_memory is off"
    return memory.choose("auto", held)


def in_memory(store: str) -> bool:
    """Whether the bytes of an image in that store count as memory in use."""
    return store in memory.KINDS or store == PRIVATE


def load_shared(
    source: Source, voxels: Voxels | None, label: str, budget: MemoryBudget, store: str
) -> tuple[OwnedSegment, Rows]:
    """The series of ``voxels`` (None: all), shared with other processes; all of it or nothing."""
    if store == disk.KIND:
        return _on_disk(source, voxels, label, budget)
    if store == "file":
        return _in_its_file(source, voxels, label)
    geometry = geometry_of(source, voxels)
    budget.require(f"loading {label}", projected(source, voxels), _INSTEAD)
    owned = OwnedSegment(label, geometry, store)
    try:
        if voxels is not None:
            owned.segment.array("voxels")[:] = voxels
        finite = loader.load(
            source, owned.segment.array("rows"), select=voxels, n_threads=transposing_threads(source)
        )
        handle = owned.share({"finite": finite, "facts": source.to_dict()})
    except BaseException:
        owned.release()
        raise
    return owned, Rows.attached(segment.attach(handle))


def transposing_threads(source: Source) -> int:
    """Next to decompression one thread keeps pace; a plain file is read faster than that."""
    return 1 if source.compressed else process.n_cpus()


def union_bytes(source: Source, regions: Regions) -> int:
    """What :func:`union` takes, its loading included."""
    n_voxels = len(regions.union)
    return n_voxels * source.n_timepoints * source.dtype.itemsize + loader.buffer_bytes(source, n_voxels)


@contextlib.contextmanager
def load_union(source: Source, voxels: Voxels, shared: bool, budget: MemoryBudget) -> Iterator[Rows]:
    """The rows of these voxels, for one call; ``shared`` if workers will read them."""
    if shared:
        store = memory.choose("auto", container.projected(geometry_of(source, voxels)))[0]
        owned, rows = load_shared(source, voxels, source.name, budget, store)
        try:
            yield rows
        finally:
            owned.release()
        return
    array = np.empty((len(voxels), source.n_timepoints), source.dtype)
    finite = loader.load(source, array, select=voxels, n_threads=transposing_threads(source))
    yield Rows(source, array, finite, voxels)


def as_source(rows: Rows) -> Source:
    """The volumes of a held image, for what needs whole volumes.

    Raises
    ------
    OutsideImageError
        The image holds the voxels of a mask only.
    """
    if rows.voxels is not None:
        raise OutsideImageError(
            f"{rows.facts.name} holds the voxels of its mask_img only: smoothing and resampling need all"
        )
    facts = {fact.name: getattr(rows.facts, fact.name) for fact in fields(Facts)}
    return ArraySource(**facts, paths=(), header=None, dataobj=stored_view(rows))


def load(
    source: Source, voxels: Voxels | None, label: str, budget: MemoryBudget, store: str
) -> tuple[OwnedSegment | None, Rows]:
    """The series of ``voxels`` (None: all) in that store; nobody owns what is not shared."""
    if store == PRIVATE:
        return None, _in_private(source, voxels, label, budget)
    return load_shared(source, voxels, label, budget, store)


def _in_private(source: Source, voxels: Voxels | None, label: str, budget: MemoryBudget) -> Rows:
    budget.require(f"loading {label}", projected(source, voxels), _INSTEAD)
    shape, dtype = geometry_of(source, voxels)["rows"]
    array = np.empty(shape, dtype)
    finite = loader.load(source, array, select=voxels, n_threads=transposing_threads(source))
    array.flags.writeable = False
    return Rows(source, array, finite, voxels)


# --- files ---------------------------------------------------------------------------------------


def _on_disk(
    source: Source, voxels: Voxels | None, label: str, budget: MemoryBudget
) -> tuple[OwnedSegment, Rows]:
    geometry = geometry_of(source, voxels)
    bands = rechunk.cut(source, geometry["rows"][0][0], _working_memory(budget))
    fingerprint = source.fingerprint

    def fill(write: disk.Write) -> Mapping[str, Any]:
        budget.require(f"writing the rows of {label} to disk", bands.nbytes)
        if voxels is not None:
            write("voxels", 0, voxels)
        finite = rechunk.transpose(
            source, voxels, bands, lambda start, rows: write("rows", start, rows), disk.directory()
        )
        if source.paths and source.fingerprint != fingerprint:
            raise DamagedImageError(f"{source.name} changed while it was read")
        return {"finite": finite}

    key = disk.key_of(fingerprint, voxels, source.dtype)
    copied = rechunk.copied_bytes(source, bands)
    with disk.rows_file(key, geometry, label, fill, copied) as kept:
        return _anchored(label, kept.elsewhere, {"finite": kept.meta["finite"], "facts": source.to_dict()})


def release(owned: OwnedSegment) -> None:
    """Release an image that was loaded here; what is on disk stays for the next run, if wanted."""
    owned.release()
    if owned.file is not None and not settings.current().keep_disk:
        disk.remove_unused(os.path.basename(owned.file))


def _working_memory(budget: MemoryBudget) -> int:
    """Half of what may be used: the rest is for results."""
    per_process = settings.current().max_memory_per_process
    return min(budget.limit // 2, per_process or budget.limit)


def _in_its_file(source: Source, voxels: Voxels | None, label: str) -> tuple[OwnedSegment, Rows]:
    layout = source.layout
    if not isinstance(layout, FileLayout):
        raise ImageError(f"{source.name} cannot be used as it is ({layout}): take another store")
    if voxels is not None:
        raise ParameterError(f'{source.name} is used as it is with store="file": mask_img selects nothing')
    shape = [source.n_timepoints, source.n_voxels]
    arrays = {"volumes": {"offset": layout.offset, "shape": shape, "dtype": layout.dtype.str}}
    with open(layout.path, "rb", buffering=0) as file:
        identity = FileIdentity.of(os.path.realpath(layout.path), file.fileno(), ours=False)
    finite = source.dtype.kind in "iu"  # others would have to be read
    return _anchored(
        label, ExternalArrays(identity, arrays, "file"), {"finite": finite, "facts": source.to_dict()}
    )


def _anchored(label: str, elsewhere: ExternalArrays, meta: Mapping[str, Any]) -> tuple[OwnedSegment, Rows]:
    """A segment that is a header only, and the file attached through it."""
    owned = OwnedSegment(label, {}, memory.choose("auto", 0)[0])
    try:
        return owned, Rows.attached(segment.attach(owned.share(meta, elsewhere=elsewhere)))
    except BaseException:
        owned.release()
        raise


def pick(
    volumes: Array,
    voxels: Voxels,
    out: Array,
    conversion: Conversion | None,
    n_threads: int,
    on_volumes: Callable[[int], None] | None = None,
) -> bool:
    """Fill ``out`` with the series of ``voxels``; whether all of their values are finite.

    Parameters
    ----------
    volumes : ndarray, (n_timepoints, n_voxels)
        One volume after the other in memory.
    voxels : ndarray of int
        In any order, with repeats.
    out : ndarray, (n_picked, n_timepoints)
    conversion : Conversion or None
        None keeps the stored values.
    n_threads : int
        Threads that transpose.
    on_volumes : callable, optional
        Told how many volumes are done.

    Examples
    --------
    >>> volumes, out = np.arange(12).reshape(3, 4), np.empty((2, 3), int)
    >>> pick(volumes, np.array([3, 0]), out, None, 1)
    True
    >>> out
    array([[ 3,  7, 11],
           [ 0,  4,  8]])
    """
    first, last = (int(voxels.min()), int(voxels.max())) if len(voxels) else (0, 0)
    span = Span(volumes[:, first : last + 1])
    select = voxels - first
    return loader.load(
        span, out, select=select, conversion=conversion, n_threads=n_threads, on_volumes=on_volumes
    )


def buffer_bytes(volumes: Array, n_picked: int) -> int:
    """Memory that :func:`pick` takes besides ``out``."""
    return loader.buffer_bytes(Span(volumes), n_picked)


@dataclass(frozen=True)
class Span:
    """The same voxels of every volume, (n_timepoints, n_voxels), as ``loader`` reads an image."""

    values: Array
    compressed = False
    reading_bytes = 0

    @property
    def n_timepoints(self) -> int:
        return int(self.values.shape[0])

    @property
    def n_voxels(self) -> int:
        return int(self.values.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    @contextlib.contextmanager
    def volumes(self) -> "Iterator[_SpanReader]":
        yield _SpanReader(iter(self.values))


class _SpanReader:
    def __init__(self, values: Iterator[Array]) -> None:
        self._values = values

    def readinto(self, out: Array) -> None:
        for row in out.reshape(-1, out.shape[-1]):
            row[...] = next(self._values)


def stored_view(rows: Rows) -> Array:
    """The stored values of all voxels as a read-only (x, y, z, n_timepoints) view that travels."""
    x, y, z, n_timepoints = rows.facts.shape
    if rows.volumes is not None:
        assert rows.attachment is not None
        by_volume = rows.attachment.view("volumes")
        return by_volume.reshape(n_timepoints, z, y, x).transpose(3, 2, 1, 0)
    view = rows.array if rows.attachment is None else rows.attachment.view("rows")
    return view.reshape(z, y, x, n_timepoints).transpose(2, 1, 0, 3)


def volumes(rows: Rows, span: slice) -> Array:
    """Volumes of an image with true values, (x, y, z, n); a fresh array, 0 where no voxel is held."""
    facts = rows.facts
    conversion = Conversion(facts.slope, facts.inter, facts.scaled_dtype, facts.scaled_dtype)
    stored = rows.array[:, span]
    values = np.zeros((facts.n_voxels, stored.shape[1]), facts.scaled_dtype)
    inside = slice(None) if rows.voxels is None else rows.voxels
    values[inside] = kernels.scale(stored, conversion)
    return values.reshape(*facts.shape[:3], -1, order="F")
