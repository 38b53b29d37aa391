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
from contextlib import AbstractContextManager
from dataclasses import field
from typing import Any

import numpy as np
from nibabel.volumeutils import apply_read_scaling

from sharedmask.errors import (
    AttachError,
    ImageError,
    OutsideImageError,
    ParameterError,
    SourceChangedError,
)
from sharedmask.records import dataclass
from sharedmask.regions.regions import Regions
from sharedmask.sources import loader, rechunk
from sharedmask.sources.by_row import RowSource
from sharedmask.sources.layout import FileLayout
from sharedmask.sources.source import ArraySource, Facts, Source
from sharedmask.sources.values import Conversion
from sharedmask.sources.volumes import Span, Volumes
from sharedmask.storage import container, disk, mapped_file, memory, memory_pages, segment
from sharedmask.storage.mapped_file import FileIdentity, map_users_file
from sharedmask.storage.registry import OwnedSegment, publish
from sharedmask.storage.segment import Attachment, ExternalArrays, Shared
from sharedmask.system import platform, settings
from sharedmask.system.budget import MemoryBudget
from sharedmask.typing import Array, NDArray

PRIVATE = segment.PRIVATE
"""Memory of this process, for its threads."""
STORES = (*memory.KINDS, disk.KIND, "file", PRIVATE)
_MOST_RUNS = 1000  # of rows that are asked for one by one
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
    attachment: Attachment | None = None
    """Where they are attached; without it a view could not be made once the owner is gone."""
    as_they_lie: str | None = None
    """The user's file, if they are looked at in it: it is read while they are, and not before."""

    @property
    def shared(self) -> Shared | None:
        return None if self.attachment is None else self.attachment.shared("rows")

    @property
    def stored_view(self) -> Array:
        """The stored values of all voxels as a read-only (x, y, z, n_timepoints) view that travels."""
        *space, n_timepoints = self.facts.shape
        view = self.array if self.attachment is None else self.attachment.view("rows")
        return np.moveaxis(view.reshape(*space[::-1], n_timepoints).T, 0, -1)

    def check(self) -> None:
        """Raise a SourceChangedError if the rows are the user's file, and it was written to."""
        if self.attachment is not None and self.attachment.is_written_to():
            raise SourceChangedError(f"{self.facts.name} changed after it was mapped: open it again")

    def will_need(self, positions: NDArray[np.intp]) -> None:
        """Have these rows read in the background, where they are in the user's file."""
        if self.as_they_lie is None:
            return
        inside = np.zeros(len(self.array), bool)
        inside[positions] = True
        wanted = np.flatnonzero(inside)
        ends = np.append(np.flatnonzero(np.diff(wanted) > 1) + 1, len(wanted))
        if len(wanted) * 2 > len(self.array) or len(ends) > _MOST_RUNS:
            mapped_file.read_through(self.as_they_lie, MemoryBudget.here().limit // 2)
            return
        for low, high in zip([0, *ends[:-1]], ends, strict=True):
            mapped_file.will_need(self.array[wanted[low] : wanted[high - 1] + 1])

    def let_go(self) -> None:
        """Have no more of the user's file count as this process's memory than what is looked at next."""
        if self.as_they_lie is not None:
            mapped_file.dont_need(self.array)

    def volumes_at(self, span: slice) -> Array:
        """Volumes with true values, (x, y, z, n); a fresh array, 0 where no voxel is held."""
        return _true_volumes(self.facts, self.array[:, span], self.voxels)

    def positions(self, regions: Regions) -> NDArray[np.intp]:
        """Row numbers of all regions' voxels, one region after the other.

        Raises OutsideImageError, naming the first region with voxels that are not held, and how many.
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


@dataclass(frozen=True, eq=False)
class MappedVolumes(ArraySource):
    """An image in its own file, mapped as it is: its volumes pass by, and nothing is loaded.

    ``dataobj`` is the (x, y, z, n_timepoints) view of the stored values, which travels.
    """

    attachment: Attachment = field(repr=False)
    voxels: None = field(default=None, init=False, repr=False)
    """It holds all of them."""

    @property
    def by_volume(self) -> Array:
        """(n_timepoints, n_voxels)."""
        return self.attachment.arrays["volumes"]

    @property
    def stored_view(self) -> Array:
        """The stored values as a read-only (x, y, z, n_timepoints) view that travels."""
        view: Array = self.dataobj
        return view

    @property
    def shared(self) -> Shared | None:
        return self.attachment.shared("volumes")

    def check(self, when: str = "after it was mapped: open it again") -> None:
        if self.attachment.is_written_to():
            raise SourceChangedError(f"{self.name} changed {when}")

    def volumes_at(self, span: slice) -> Array:
        """Volumes with true values, (x, y, z, n); a fresh array."""
        with self.unchanged():
            return _true_volumes(self, self.by_volume[span].T, None)

    def narrowed(self, select: Voxels | None) -> tuple[Volumes, Voxels | None]:
        """Of each volume what lies from the first voxel asked for to the last: the rest is not touched."""
        if select is None or not len(select):
            return self, select
        first, last = int(select.min()), int(select.max())
        values = self.by_volume[:, first : last + 1]

        def read(number: int, row: Array) -> None:
            row[...] = values[number]

        return Span(len(values), last + 1 - first, values.dtype, read, self.unchanged), select - first


Series = Rows | Source
"""What signals are taken from: rows that are held, or volumes that pass by."""
Held = Rows | MappedVolumes
"""An image that a process holds."""


def attached(attachment: Attachment) -> Held:
    """The image that is shared there.

    Raises AttachError: what is shared is no image.
    """
    handle, arrays, meta = attachment.handle, attachment.arrays, attachment.meta
    try:
        facts, finite = Facts.from_dict(meta["facts"]), bool(meta["finite"])
        if "rows" in arrays:
            file = attachment.file
            lies = None if file is None or file.ours else file.path
            if lies is not None:
                mapped_file.no_read_ahead(arrays["rows"])
            return Rows(facts, arrays["rows"], finite, arrays.get("voxels"), attachment, lies)
        view = attachment.view("volumes").reshape(facts.shape[::-1]).T
        return MappedVolumes(**facts.known(Facts), files=(), dataobj=view, attachment=attachment)
    except (KeyError, TypeError, ValueError) as error:
        raise AttachError(f"{handle.label} is no shared image: {error!r}") from error


def _true_volumes(facts: Facts, stored: Array, voxels: Voxels | None) -> Array:
    true = np.zeros((facts.n_voxels, stored.shape[1]), facts.scaled_dtype)
    true[slice(None) if voxels is None else voxels] = apply_read_scaling(stored, facts.slope, facts.inter)
    return true.reshape(*facts.shape[:-1], -1, order="F")


def geometry_of(facts: Facts, voxels: Voxels | None) -> container.Geometry:
    n_rows = facts.n_voxels if voxels is None else len(voxels)
    rows = ((n_rows, facts.n_timepoints), facts.dtype)
    return {"rows": rows} if voxels is None else {"rows": rows, "voxels": (voxels.shape, voxels.dtype)}


def projected(source: Source, voxels: Voxels | None) -> int:
    """Bytes of memory that an image takes while it is loaded into shared memory."""
    geometry = geometry_of(source, voxels)
    n_rows = None if voxels is None else len(voxels)
    return container.projected(geometry) + loader.buffer_bytes(source, n_rows, source.n_writers)


def choose(asked: str, source: Source, voxels: Voxels | None, budget: MemoryBudget) -> tuple[str, str]:
    """The store, and the reason.

    ``"auto"`` is shared memory if the image fits in what may be used, and the disk if not.
    """
    if asked != "auto":
        return asked, "asked for"
    held = container.projected(geometry_of(source, voxels))
    if reason := budget.why_on_disk(held, projected(source, voxels)):
        return disk.KIND, reason
    if not budget.settings.shared_memory:
        return PRIVATE, "shared_memory is off" if platform.can_share() else "this system shares no memory"
    return memory.choose("auto", held)


def not_shared_error(name: str, asked: str) -> ParameterError:
    """What to raise for who wants to share an image that is private."""
    why = "shared_memory is off" if asked == "auto" else f"its store is {asked!r}"
    return ParameterError(
        f"{name} is held by this process alone: {why if platform.can_share() else platform.NOT_SHARED}"
    )


def loading_bytes(asked: str, source: Source, budget: MemoryBudget) -> int:
    """Memory that an image takes in the store that :func:`choose` gives it, while it is loaded and then."""
    store, _ = choose(asked, source, None, budget)
    if store == disk.KIND:
        return rechunk.cut(source, source.n_voxels, _working_memory(budget)).nbytes
    return projected(source, None) if in_memory(store) else 0


def in_memory(store: str) -> bool:
    """Whether the bytes of an image in that store count as memory in use."""
    return store in memory.KINDS or store == PRIVATE


def load(
    source: Source, voxels: Voxels | None, label: str, budget: MemoryBudget, store: str
) -> tuple[OwnedSegment | None, Held]:
    """The series of ``voxels`` (None: all) in that store, or nothing; nobody owns what is not shared.

    Raises SourceChangedError: the files are not those that were opened, or change while they are read.
    """
    source.check()
    if store == disk.KIND:
        return _on_disk(source, voxels, label, budget)
    if store == "file":
        return _in_its_file(source, voxels, label)
    geometry = geometry_of(source, voxels)
    budget.require(f"loading {label}", projected(source, voxels), _INSTEAD)
    if store == PRIVATE:
        array = np.empty(*geometry["rows"])
        finite = fill(source, array, voxels)
        array.flags.writeable = False
        return None, Rows(source, array, finite, voxels)

    def fill_all(arrays: dict[str, Array]) -> Mapping[str, Any]:
        if voxels is not None:
            arrays["voxels"][:] = voxels
        memory_pages.populate(arrays["rows"])
        return {"finite": fill(source, arrays["rows"], voxels, begun=begun)}

    with _begun(source, voxels) as begun:  # decodes while memory is reserved
        owned, attachment = publish(label, geometry, fill_all, store, meta={"facts": source.to_dict()})
    return owned, attached(attachment)


def _begun(source: Source, voxels: Voxels | None) -> AbstractContextManager[loader.Blocks | None]:
    if isinstance(source, RowSource):
        return contextlib.nullcontext()
    return loader.blocks(*source.narrowed(voxels))


def fill(
    source: Source,
    out: Array,
    voxels: Voxels | None,
    conversion: Conversion | None = None,
    on_volumes: Callable[[int], None] | None = None,
    begun: loader.Blocks | None = None,
) -> bool:
    """Write the series of ``voxels`` into the rows of ``out``, in one pass; whether all are finite."""
    if isinstance(source, RowSource):
        finite = source.load(out, voxels, conversion)
        if on_volumes is not None:
            on_volumes(source.n_timepoints)
        return finite
    volumes, select = source.narrowed(voxels)
    return loader.load(
        volumes,
        out,
        select=select,
        conversion=conversion,
        n_threads=source.n_writers,
        on_volumes=on_volumes,
        begun=begun,
    )


def union_bytes(source: Source, regions: Regions) -> int:
    """What :func:`load_union` takes, its loading included."""
    if isinstance(source, RowSource) and source.is_mappable:
        return 0
    n_voxels, nbytes = len(regions.union), source.n_timepoints * source.dtype.itemsize
    return n_voxels * nbytes + loader.buffer_bytes(source, n_voxels, source.n_writers)


@contextlib.contextmanager
def load_union(source: Source, voxels: Voxels, shared: bool, budget: MemoryBudget) -> Iterator[Rows]:
    """The rows of these voxels, for one call; ``shared`` if workers will read them.

    They are those of the image's own file, if it has rows as they are in memory.
    """
    with contextlib.ExitStack() as stack:
        held: Held
        if isinstance(source, RowSource) and source.is_mappable:
            stack.enter_context(source.unchanged())
            owned, held = _in_its_file(source, None, source.name) if shared else (None, _mapped(source))
        else:
            needed = container.projected(geometry_of(source, voxels))
            store = memory.choose("auto", needed)[0] if shared else PRIVATE
            owned, held = load(source, voxels, source.name, budget, store)
        if owned is not None:
            stack.callback(owned.release)
        assert isinstance(held, Rows)
        yield held


def _mapped(source: RowSource) -> Rows:
    layout = source.layout
    assert isinstance(layout, FileLayout)
    shape, strides = (source.n_voxels, source.n_timepoints), (source.row_bytes, source.dtype.itemsize)
    view = map_users_file(layout.path, source.name).at(layout.offset, shape, strides, source.dtype)
    mapped_file.no_read_ahead(view)
    return Rows(source, np.asarray(view), source.dtype.kind in "iu", as_they_lie=layout.path)


def as_source(held: Held) -> Source:
    """The volumes of a held image, for what needs whole volumes.

    Raises OutsideImageError: the image holds the voxels of a mask only.
    """
    if isinstance(held, Source):
        return held
    if held.voxels is not None:
        raise OutsideImageError(
            f"{held.facts.name} holds the voxels of its mask_img only: smoothing and resampling need all"
        )
    return ArraySource(**held.facts.known(Facts), files=(), dataobj=held.stored_view)


# --- files ---------------------------------------------------------------------------------------


def _on_disk(
    source: Source, voxels: Voxels | None, label: str, budget: MemoryBudget
) -> tuple[OwnedSegment | None, Held]:
    geometry = geometry_of(source, voxels)
    bands = rechunk.cut(source, geometry["rows"][0][0], _working_memory(budget))

    def fill(write: disk.Write) -> Mapping[str, Any]:
        budget.require(f"writing the rows of {label} to disk", bands.nbytes)
        if voxels is not None:
            write("voxels", 0, voxels)
        finite = rechunk.transpose(
            source, voxels, bands, lambda start, rows: write("rows", start, rows), disk.directory()
        )
        return {"finite": finite}

    with source.unchanged():
        key = disk.key_of(source.fingerprint, voxels, source.dtype)
    copied = rechunk.copied_bytes(source, bands)
    with disk.rows_file(key, geometry, label, fill, copied) as found:
        return _anchored(
            label, found.elsewhere, {"finite": bool(found.meta.get("finite")), "facts": source.to_dict()}
        )


def our_file(held: Held | None) -> str | None:
    """The path of the file of ours in which an image lies."""
    file = None if held is None or held.attachment is None else held.attachment.file
    return file.path if file is not None and file.ours else None


def release(owned: OwnedSegment | None, file: str | None) -> None:
    """Release an image that was loaded here, into ``file``, which stays for the next run, if wanted."""
    if owned is not None:
        owned.release()
    if file is not None and not settings.current().keep_disk:
        disk.remove_unused(os.path.basename(file))


def _working_memory(budget: MemoryBudget) -> int:
    """Half of what may be used: the rest is for results."""
    per_process = budget.settings.max_memory_per_process
    return min(budget.limit // 2, per_process or budget.limit)


def _in_its_file(source: Source, voxels: Voxels | None, label: str) -> tuple[OwnedSegment | None, Held]:
    layout = source.layout
    if not isinstance(layout, FileLayout):
        raise ImageError(f"{source.name} cannot be used as it is ({layout}): take another store")
    if voxels is not None:
        raise ParameterError(f'{source.name} is used as it is with store="file": mask_img selects nothing')
    shape, by_row = [source.n_timepoints, source.n_voxels], layout.order == "rows"
    place = {"offset": layout.offset, "shape": shape[::-1] if by_row else shape, "dtype": layout.dtype.str}
    arrays = {"rows" if by_row else "volumes": place}
    with source.unchanged(), open(layout.path, "rb", buffering=0) as file:
        identity = FileIdentity.of(os.path.realpath(layout.path), file.fileno(), ours=False)
    finite = source.dtype.kind in "iu"  # others would have to be read
    meta = {"finite": finite, "facts": source.to_dict()}
    try:
        return _anchored(label, ExternalArrays(identity, arrays, "file"), meta)
    except AttachError:
        source.check()
        raise


def _anchored(
    label: str, elsewhere: ExternalArrays, meta: Mapping[str, Any]
) -> tuple[OwnedSegment | None, Held]:
    """A segment that is a header only, and the file attached through it; the file alone without one."""
    if not platform.can_share():
        return None, attached(segment.here_only(label, elsewhere, meta))
    owned, attachment = publish(label, {}, lambda _: None, meta=meta, elsewhere=elsewhere)
    return owned, attached(attachment)
