from ._version import __version__ as __version__
from .frames.dataset import FrameDataset as FrameDataset
from .image.coordinator import Coordinator as Coordinator
from .image.extraction import extract as extract
from .image.image import SharedImage as SharedImage
from .maskers.labels import SharedLabelsMasker as SharedLabelsMasker
from .maskers.maps import SharedMapsMasker as SharedMapsMasker
from .maskers.multi import SharedMultiMasker as SharedMultiMasker
from .maskers.nifti import SharedNiftiMasker as SharedNiftiMasker
from .maskers.runs import SharedMultiLabelsMasker as SharedMultiLabelsMasker
from .maskers.runs import SharedMultiMapsMasker as SharedMultiMapsMasker
from .maskers.runs import SharedMultiNiftiMasker as SharedMultiNiftiMasker
from .maskers.spheres import SharedSpheresMasker as SharedSpheresMasker
from .maskers.surfaces import SharedCiftiLabelsMasker as SharedCiftiLabelsMasker
from .maskers.surfaces import SharedCiftiMasker as SharedCiftiMasker
from .maskers.surfaces import SharedSurfaceLabelsMasker as SharedSurfaceLabelsMasker
from .maskers.surfaces import SharedSurfaceMapsMasker as SharedSurfaceMapsMasker
from .maskers.surfaces import SharedSurfaceMasker as SharedSurfaceMasker
from .network.batches import batch_process as batch_process
from .network.mapper import FunctionalNetworkMapper as FunctionalNetworkMapper
from .regions.regions import Regions as Regions
from .spaces.grid import Grid as Grid
from .storage.arrays import share as share
from .storage.arrays import share_output as share_output
from .study.cohort import extract_many as extract_many
from .study.denoising import Denoise as Denoise
from .system.budget import MemoryBudget as MemoryBudget
from .system.monitor import MemoryMonitor as MemoryMonitor

__all__ = [
    "Coordinator",
    "Denoise",
    "FrameDataset",
    "FunctionalNetworkMapper",
    "Grid",
    "MemoryBudget",
    "MemoryMonitor",
    "Regions",
    "SharedCiftiLabelsMasker",
    "SharedCiftiMasker",
    "SharedImage",
    "SharedLabelsMasker",
    "SharedMapsMasker",
    "SharedMultiLabelsMasker",
    "SharedMultiMapsMasker",
    "SharedMultiMasker",
    "SharedMultiNiftiMasker",
    "SharedNiftiMasker",
    "SharedSpheresMasker",
    "SharedSurfaceLabelsMasker",
    "SharedSurfaceMapsMasker",
    "SharedSurfaceMasker",
    "__version__",
    "batch_process",
    "extract",
    "extract_many",
    "share",
    "share_output",
]
