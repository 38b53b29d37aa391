from .elements import SharedCiftiLabelsMasker as SharedCiftiLabelsMasker
from .elements import SharedCiftiMasker as SharedCiftiMasker
from .elements import SharedSurfaceLabelsMasker as SharedSurfaceLabelsMasker
from .elements import SharedSurfaceMapsMasker as SharedSurfaceMapsMasker
from .elements import SharedSurfaceMasker as SharedSurfaceMasker
from .labels import SharedLabelsMasker as SharedLabelsMasker
from .maps import SharedMapsMasker as SharedMapsMasker
from .multi import SharedMultiMasker as SharedMultiMasker
from .nifti import SharedNiftiMasker as SharedNiftiMasker
from .runs import SharedMultiLabelsMasker as SharedMultiLabelsMasker
from .runs import SharedMultiMapsMasker as SharedMultiMapsMasker
from .runs import SharedMultiNiftiMasker as SharedMultiNiftiMasker
from .spheres import SharedSpheresMasker as SharedSpheresMasker

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
