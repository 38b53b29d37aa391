"""The backing: the frames of a run as they are stored, one after the other.

Covers: which store suits, mapping the user's file as it is, loading frames into shared memory or into
an unnamed file. Does not cover: files (``source``, ``nfdh5``), maps (``mapped_file``, ``segment``), what
becomes of frames (``store``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from sharedmask.errors import ParameterError
from sharedmask.records import dataclass
from sharedmask.sources.layout import FileLayout, Order
from sharedmask.sources.source import Source
from sharedmask.storage import container, mapped_file, memory, rows
from sharedmask.storage.container import Geometry
from sharedmask.storage.mapped_file import FileMap, map_users_file
from sharedmask.storage.registry import OwnedSegment, publish
from sharedmask.storage.spill import Spill
from sharedmask.storage.views import SharedArray
from sharedmask.system import monitor, platform, settings
from sharedmask.system.budget import MemoryBudget
from sharedmask.typing import Array

STORES = ("auto", "file", *memory.KINDS, "disk", rows.PRIVATE)


@dataclass(frozen=True)
class Backing:
    """Frames as they are stored."""

    rows: SharedArray
    """(N, voxels), read-only."""
    order: Order
    """Of the voxels of a frame: x fastest as in NIfTI ("F"), or z as in HDF5."""
    store: tuple[str, str]
    """Where they live, and why there."""
    owned: OwnedSegment | Spill | None = None
    """What is released at the end; None for a file of the user's, or another process's."""

    def check(self) -> None:
        """Learn that the user's file, if frames are in it, was written to."""
        if isinstance(self.rows.origin, FileMap):
            self.rows.origin.check()


def checked_store(asked: str) -> str:
    """Refuse what is no store."""
    if asked not in STORES:
        raise ParameterError(f"store={asked!r} is none of {', '.join(map(repr, STORES))}")
    return asked


def open_backing(source: Source, asked: str, memory_limit: Any) -> Backing:
    """Map or load the frames of ``source``, in a store of :func:`checked_store`."""
    layout = source.layout
    if asked in ("auto", "file") and isinstance(layout, FileLayout):
        return _map(source, layout)
    if asked == "file":
        raise ParameterError(f"{source.name} cannot be mapped as it is ({layout}): use another store")
    if asked == "disk":
        return _spill(source, "asked for")
    budget = MemoryBudget.here(memory_limit)
    if asked == "auto" and (reason := _why_on_disk(source, budget)):
        return _spill(source, reason)
    return _share(source, asked, budget)


def _map(source: Source, layout: FileLayout) -> Backing:
    with source.unchanged():
        mapped = map_users_file(layout.path, os.path.basename(source.name))
    shape, itemsize = (source.n_timepoints, source.n_voxels), layout.dtype.itemsize
    rows = mapped.at(layout.offset, shape, (shape[1] * itemsize, itemsize), layout.dtype)
    return Backing(rows, layout.order, ("file", "uncompressed: mapped as it is"))


def _why_on_disk(source: Source, budget: MemoryBudget) -> str:
    """Empty if frames go to shared memory."""
    held = container.projected(_geometry(source))
    if reason := budget.why_on_disk(held, held + _volume_bytes(source)):
        return reason
    if settings.current().shared_memory or not platform.can_share():
        return ""
    if not settings.current().use_disk:
        raise ParameterError(f"{source.name} has no store: shared_memory and use_disk are off")
    return "shared_memory is off"


def _volume_bytes(source: Source) -> int:
    return source.nbytes // source.n_timepoints


def _geometry(source: Source) -> Geometry:
    return {"frames": ((source.n_timepoints, source.n_voxels), source.dtype)}


def _share(source: Source, asked: str, budget: MemoryBudget) -> Backing:
    label, geometry = os.path.basename(source.name), _geometry(source)
    nbytes = container.projected(geometry)
    alone = asked == rows.PRIVATE or (asked == "auto" and not platform.can_share())
    if alone:
        store, reason = rows.PRIVATE, "asked for" if asked != "auto" else "this system shares no memory"
    else:
        store, reason = memory.choose(asked, nbytes)
    needed = nbytes + _volume_bytes(source)
    budget.require(f"loading the frames of {label}", needed, "store='disk' takes a volume only")
    with monitor.operation("load", f"loading the frames of {label}", needed):
        if alone:
            arrays = {name: np.empty(*place) for name, place in geometry.items()}
            _fill(source, arrays)
            arrays["frames"].flags.writeable = False
            return Backing(arrays["frames"].view(SharedArray), "F", (store, reason))
        owned, attachment = publish(label, geometry, partial(_fill, source), store)
    return Backing(attachment.view("frames"), "F", (store, reason), owned)


def _fill(source: Source, arrays: Mapping[str, Array]) -> None:
    with source.volumes() as reader:
        for row in arrays["frames"]:
            reader.readinto(row)
            mapped_file.dont_need(row)


def _spill(source: Source, reason: str) -> Backing:
    label = os.path.basename(source.name)
    spill = Spill(label, _geometry(source), reserve=True)
    try:
        row = np.empty(source.n_voxels, source.dtype)
        what = f"writing the frames of {label} to disk"
        with monitor.operation("load", what, row.nbytes), source.volumes() as reader:
            for number in range(source.n_timepoints):
                reader.readinto(row)
                spill.write("frames", number, row)
        return Backing(spill.array("frames"), "F", ("disk", reason), spill)
    except BaseException:
        spill.release()
        raise
