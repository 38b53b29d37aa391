"""Mask one large fMRI run with many regions in parallel, from one copy in shared memory.

The public names, imported when first used: ``import sharedmask`` costs what numpy and nibabel cost.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sharedmask.budget import MemoryBudget
    from sharedmask.extraction import extract
    from sharedmask.frames import FrameDataset
    from sharedmask.image import SharedImage
    from sharedmask.maskers import SharedLabelsMasker, SharedMapsMasker, SharedNiftiMasker
    from sharedmask.monitor import MemoryMonitor
    from sharedmask.multimask import SharedMultiMasker
    from sharedmask.regions import Grid, Regions
    from sharedmask.service import Coordinator

__version__ = "0.1.0"

_ROOMS = {
    "SharedImage": "image",
    "extract": "extraction",
    "FrameDataset": "frames",
    "Regions": "regions",
    "Grid": "regions",
    "MemoryBudget": "budget",
    "MemoryMonitor": "monitor",
    "Coordinator": "service",
    "SharedNiftiMasker": "maskers",
    "SharedLabelsMasker": "maskers",
    "SharedMapsMasker": "maskers",
    "SharedMultiMasker": "multimask",
}

__all__ = [
    "Coordinator",
    "FrameDataset",
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
    "extract",
]


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module 'sharedmask' has no attribute {name!r}")
    return getattr(import_module(f"sharedmask.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
