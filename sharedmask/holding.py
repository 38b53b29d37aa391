"""Holding an image: the rows of its voxels in a store, all of them or nothing.

Covers: what a held image takes, filling its segment, attaching to it like everyone else. Does not
cover: when an image is loaded and closed (``image``), the decoding pipeline (``loading``), which
store suits (``stores``), who cleans up after a crash (``registry``).
"""

import numpy as np
from numpy.typing import NDArray

from sharedmask import loading, pool, segments
from sharedmask.budget import MemoryBudget
from sharedmask.masking import Rows
from sharedmask.registry import Owned
from sharedmask.sources import Facts, Source


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
