from .labels import SharedLabelsMasker as SharedLabelsMasker
from .maps import SharedMapsMasker as SharedMapsMasker
from .multi import SharedMultiMasker as SharedMultiMasker
from .nifti import SharedNiftiMasker as SharedNiftiMasker
from .runs import SharedMultiLabelsMasker as SharedMultiLabelsMasker
from .runs import SharedMultiMapsMasker as SharedMultiMapsMasker
from .runs import SharedMultiNiftiMasker as SharedMultiNiftiMasker
from .spheres import SharedSpheresMasker as SharedSpheresMasker
from .surfaces import SharedCiftiLabelsMasker as SharedCiftiLabelsMasker
from .surfaces import SharedCiftiMasker as SharedCiftiMasker
from .surfaces import SharedSurfaceLabelsMasker as SharedSurfaceLabelsMasker
from .surfaces import SharedSurfaceMapsMasker as SharedSurfaceMapsMasker
from .surfaces import SharedSurfaceMasker as SharedSurfaceMasker

__all__ = [
    "SharedCiftiLabelsMasker",
    "SharedCiftiMasker",
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
]
