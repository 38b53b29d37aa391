"""Holding an image: the rows of its voxels in a store, all of them or nothing.

Covers: which store an image goes to and why, what that takes, filling it, attaching to it like
everyone else; holding the voxels of one call; reading volumes back. Does not cover: when an image is
loaded and closed (``image``), the decoding pipeline (``loading``, ``banding``), where bytes live
(``stores``, ``disk``, ``mapped``), who cleans up after a crash (``registry``).

Of an image on disk, or in its own file, the segment that is shared is a header only, which names
the file: handles, records and what happens at a death are the same for all stores.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharedmask import banding, disk, loading, masking, monitor, plans, pool, segments, settings, stores
from sharedmask.budget import MemoryBudget
from sharedmask.errors import DamagedImageError, ImageError, OutsideImageError, ParameterError
from sharedmask.mapped import FileIdentity
from sharedmask.masking import Rows
from sharedmask.plans import Plan
from sharedmask.regions import Regions
from sharedmask.registry import Owned
from sharedmask.segments import Elsewhere
from sharedmask.sources import ArraySource, Facts, FileSource, Source

STORES = (*stores.KINDS, disk.KIND, "file")
PRIVATE = "private"
FEWER = "extract fewer masks at a time"
_INSTEAD = "store='disk' takes little, and extract() holds the masks' voxels only"

Voxels = NDArray[np.intp]


def geometry_of(facts: Facts, voxels: Voxels | None) -> segments.Geometry:
    n_rows = facts.n_voxels if voxels is None else len(voxels)
    rows = ((n_rows, facts.n_timepoints), facts.dtype)
    return {"rows": rows} if voxels is None else {"rows": rows, "voxels": (voxels.shape, voxels.dtype)}


def projected(source: Source, voxels: Voxels | None) -> int:
    """Bytes of memory that an image takes while it is loaded into shared memory."""
    geometry = geometry_of(source, voxels)
    return segments.projected(geometry) + loading.buffer_bytes(source, geometry["rows"][0][0])


def choose(asked: str, source: Source, voxels: Voxels | None, budget: MemoryBudget) -> tuple[str, str]:
    """The store, and the reason.

    ``"auto"`` is shared memory if the image fits in what may be used, and the disk if not.
    """
    if asked != "auto":
        return asked, "asked for"
    held = segments.projected(geometry_of(source, voxels))
    if reason := budget.why_on_disk(held, projected(source, voxels)):
        return disk.KIND, reason
    if not settings.current().shared_memory:
        return PRIVATE, "shared_memory is off"
    return stores.choose("auto", held)


def in_memory(store: str) -> bool:
    """Whether the bytes of an image in that store count as memory in use."""
    return store in stores.KINDS or store == PRIVATE


def load_shared(
    source: Source, voxels: Voxels | None, label: str, budget: MemoryBudget, store: str
) -> tuple[Owned, Rows]:
    """The series of ``voxels`` (None: all), shared with other processes; all of it or nothing."""
    if store == disk.KIND:
        return _on_disk(source, voxels, label, budget)
    if store == "file":
        return _in_its_file(source, voxels, label)
    geometry = geometry_of(source, voxels)
    budget.require(f"loading {label}", projected(source, voxels), _INSTEAD)
    owned = Owned(label, geometry, store)
    try:
        if voxels is not None:
            owned.segment.array("voxels")[:] = voxels
        finite = loading.load(
            source, owned.segment.array("rows"), select=voxels, n_threads=transposing_threads(source)
        )
        handle = owned.share({"finite": finite, "facts": source.to_dict()})
    except BaseException:
        owned.release()
        raise
    return owned, Rows.attached(segments.attach(handle))


def transposing_threads(source: Source) -> int:
    """Next to decompression one thread keeps pace; a plain file is read faster than that."""
    return 1 if source.compressed else pool.n_cpus()


def union_bytes(source: Source, regions: Regions) -> int:
    """What :func:`union` takes, its loading included."""
    n_voxels = len(regions.union)
    return n_voxels * source.n_timepoints * source.dtype.itemsize + loading.buffer_bytes(source, n_voxels)


@contextlib.contextmanager
def union(source: Source, regions: Regions, plan: Plan, budget: MemoryBudget) -> Iterator[Rows]:
    """The rows of all regions' voxels, for one call; shared only if workers will read them."""
    voxels = regions.union
    needed = union_bytes(source, regions) + plan.needed
    budget.require(plan.operation, needed, FEWER)
    with monitor.operation("extract", plan.operation, needed):
        if plans.in_processes(plan.request, heavy=plan.request.cleaning.needed):
            nbytes = segments.projected(geometry_of(source, voxels))
            store = stores.choose("auto", nbytes)[0]
            owned, rows = load_shared(source, voxels, source.name, budget, store)
            try:
                yield rows
            finally:
                owned.release()
            return
        array = np.empty((len(voxels), source.n_timepoints), source.dtype)
        finite = loading.load(source, array, select=voxels, n_threads=transposing_threads(source))
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
    return ArraySource(**facts, paths=(), header=None, dataobj=masking.stored_view(rows))


def hold(
    source: Source, voxels: Voxels | None, label: str, budget: MemoryBudget, store: str
) -> tuple[Owned | None, Rows]:
    """The series of ``voxels`` (None: all) in that store; nobody owns what is not shared."""
    if store == PRIVATE:
        return None, _in_private(source, voxels, label, budget)
    return load_shared(source, voxels, label, budget, store)


def _in_private(source: Source, voxels: Voxels | None, label: str, budget: MemoryBudget) -> Rows:
    budget.require(f"loading {label}", projected(source, voxels), _INSTEAD)
    shape, dtype = geometry_of(source, voxels)["rows"]
    array = np.empty(shape, dtype)
    finite = loading.load(source, array, select=voxels, n_threads=transposing_threads(source))
    array.flags.writeable = False
    return Rows(source, array, finite, voxels)


# --- files ---------------------------------------------------------------------------------------


def _on_disk(source: Source, voxels: Voxels | None, label: str, budget: MemoryBudget) -> tuple[Owned, Rows]:
    geometry = geometry_of(source, voxels)
    bands = banding.cut(source, geometry["rows"][0][0], _working_memory(budget))
    fingerprint = source.fingerprint

    def fill(write: disk.Write) -> Mapping[str, Any]:
        budget.require(f"writing the rows of {label} to disk", bands.nbytes)
        if voxels is not None:
            write("voxels", 0, voxels)
        finite = banding.transpose(
            source, voxels, bands, lambda start, rows: write("rows", start, rows), disk.directory()
        )
        if source.paths and source.fingerprint != fingerprint:
            raise DamagedImageError(f"{source.name} changed while it was read")
        return {"finite": finite}

    key = disk.key_of(fingerprint, voxels, source.dtype)
    copied = banding.copied_bytes(source, bands)
    with disk.rows_file(key, geometry, label, fill, copied) as kept:
        return _anchored(label, kept.elsewhere, {"finite": kept.meta["finite"], "facts": source.to_dict()})


def let_go(owned: Owned) -> None:
    """Release an image that was loaded here; what is on disk stays for the next run, if wanted."""
    owned.release()
    if owned.file is not None and not settings.current().keep_disk:
        disk.remove_unused(os.path.basename(owned.file))


def _working_memory(budget: MemoryBudget) -> int:
    """Half of what may be used: the rest is for results."""
    per_process = settings.current().max_memory_per_process
    return min(budget.limit // 2, per_process or budget.limit)


def _in_its_file(source: Source, voxels: Voxels | None, label: str) -> tuple[Owned, Rows]:
    if not (isinstance(source, FileSource) and banding.is_plain(source)):
        why = "is compressed" if source.compressed else "is processed, or foreign, or several files"
        raise ImageError(f"{source.name} cannot be used as it is, because it {why}: take another store")
    if voxels is not None:
        raise ParameterError(f'{source.name} is used as it is with store="file": mask_img selects nothing')
    shape = [source.n_timepoints, source.n_voxels]
    arrays = {"volumes": {"offset": source.offset, "shape": shape, "dtype": source.dtype.str}}
    with open(source.file, "rb", buffering=0) as file:
        identity = FileIdentity.of(os.path.realpath(source.file), file.fileno(), ours=False)
    finite = source.dtype.kind in "iu"  # others would have to be read
    return _anchored(
        label, Elsewhere(identity, arrays, "file"), {"finite": finite, "facts": source.to_dict()}
    )


def _anchored(label: str, elsewhere: Elsewhere, meta: Mapping[str, Any]) -> tuple[Owned, Rows]:
    """A segment that is a header only, and the file attached through it."""
    owned = Owned(label, {}, stores.choose("auto", 0)[0])
    try:
        return owned, Rows.attached(segments.attach(owned.share(meta, elsewhere=elsewhere)))
    except BaseException:
        owned.release()
        raise
