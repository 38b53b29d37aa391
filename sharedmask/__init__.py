"""Mask one large fMRI run with many regions in parallel, from one copy in shared memory.

The public names, imported when first used: ``import sharedmask`` costs what numpy and nibabel cost.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sharedmask.batches import batch_process
    from sharedmask.budget import MemoryBudget
    from sharedmask.cohort import extract_many
    from sharedmask.extraction import extract
    from sharedmask.frames import FrameDataset
    from sharedmask.grids import Grid
    from sharedmask.image import SharedImage
    from sharedmask.maskers import SharedLabelsMasker, SharedMapsMasker, SharedNiftiMasker
    from sharedmask.monitor import MemoryMonitor
    from sharedmask.multimask import SharedMultiMasker
    from sharedmask.network import FunctionalNetworkMapper
    from sharedmask.regions import Regions
    from sharedmask.service import Coordinator

__version__ = "0.1.0"

_ROOMS = {
    "SharedImage": "image",
    "extract": "extraction",
    "FrameDataset": "frames",
    "Regions": "regions",
    "Grid": "grids",
    "MemoryBudget": "budget",
    "MemoryMonitor": "monitor",
    "Coordinator": "service",
    "SharedNiftiMasker": "maskers",
    "SharedLabelsMasker": "maskers",
    "SharedMapsMasker": "maskers",
    "SharedMultiMasker": "multimask",
    "extract_many": "cohort",
    "FunctionalNetworkMapper": "network",
    "batch_process": "batches",
}

__all__ = [
    "Coordinator",
    "FrameDataset",
    "FunctionalNetworkMapper",
    "Grid",
    "MemoryBudget",
    "MemoryMonitor",
    "Regions",
    "SharedImage",
    "SharedLabelsMasker",
    "SharedMapsMasker",
    "SharedMultiMasker",
    "SharedNiftiMasker",
    "__version__",
    "batch_process",
    "extract",
    "extract_many",
]


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module 'sharedmask' has no attribute {name!r}")
    return getattr(import_module(f"sharedmask.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
