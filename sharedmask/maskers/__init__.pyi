from .labels import SharedLabelsMasker as SharedLabelsMasker
from .maps import SharedMapsMasker as SharedMapsMasker
from .multi import SharedMultiMasker as SharedMultiMasker
from .nifti import SharedNiftiMasker as SharedNiftiMasker
from .spheres import SharedSpheresMasker as SharedSpheresMasker

__all__ = [
    "SharedLabelsMasker",
    "SharedMapsMasker",
    "SharedMultiMasker",
    "SharedNiftiMasker",
    "SharedSpheresMasker",
]
