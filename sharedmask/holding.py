"""Holding an image: the rows of its voxels in a store, all of them or nothing.

Covers: what a held image takes, filling its segment, attaching to it like everyone else; holding the
voxels of one call; reading volumes back. Does not cover: when an image is loaded and closed
(``image``), the decoding pipeline (``loading``), which store suits (``stores``), who cleans up after
a crash (``registry``).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from sharedmask import loading, masking, pool, segments, stores
from sharedmask.budget import MemoryBudget
from sharedmask.errors import OutsideImageError
from sharedmask.masking import Rows
from sharedmask.parameters import Request
from sharedmask.regions import Regions
from sharedmask.registry import Owned
from sharedmask.sources import ArraySource, Facts, Source


def geometry_of(facts: Facts, voxels: NDArray[np.intp] | None) -> segments.Geometry:
    n_rows = facts.n_voxels if voxels is None else len(voxels)
    rows = ((n_rows, facts.n_timepoints), facts.dtype)
    return {"rows": rows} if voxels is None else {"rows": rows, "voxels": (voxels.shape, voxels.dtype)}


def load_shared(
    source: Source, voxels: NDArray[np.intp] | None, label: str, budget: MemoryBudget, store: str
) -> tuple[Owned, Rows]:
    """The series of ``voxels`` (None: all) in a shared segment; all of it or nothing."""
    geometry = geometry_of(source, voxels)
    buffers = loading.buffer_bytes(source, geometry["rows"][0][0])
    budget.require(f"loading {label}", segments.projected(geometry) + buffers)
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


@contextlib.contextmanager
def union(
    source: Source, regions: Regions, request: Request, budget: MemoryBudget, results: int = 0
) -> Iterator[Rows]:
    """The rows of all regions' voxels, for one call; shared only if workers will read them."""
    voxels = regions.union
    held = len(voxels) * source.n_timepoints * source.dtype.itemsize
    operation = f"extracting from {source.name}"
    budget.require(operation, held + loading.buffer_bytes(source, len(voxels)) + results)
    if request.prefer == "processes" or (request.cleaning.needed and request.n_jobs > 1):
        nbytes = segments.projected(geometry_of(source, voxels))
        owned, rows = load_shared(source, voxels, source.name, budget, stores.choose("auto", nbytes)[0])
        try:
            yield rows
        finally:
            owned.release()
        return
    shape = (len(voxels), source.n_timepoints)
    array = np.empty(shape, source.dtype)
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
