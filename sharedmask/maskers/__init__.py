"""nilearn's maskers over shared and streamed images: the same parameters, the same numbers.

Covers: estimators. Does not cover: what is done to an image (``compute``). Private names of nilearn are in
``_nilearn`` and nowhere else.

From the bottom up::

    _nilearn  inputs  extractors  base  nifti  labels  maps  spheres  multi  runs  elements  surfaces
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
