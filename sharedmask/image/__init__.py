"""One image, voxel by voxel: held for any number of requests, or passing by once.

Covers: :class:`SharedImage` and what may be asked of it, ``extract``, results that are kept, nibabel
images that stand for shared ones, the coordinator.
Does not cover: many images (``study``), volumes as a data set (``frames``).

From the bottom up::

    facts  results  niimg  owners  protocol  glm  operations  relations  searchlight  image
    extraction  coordinator
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
