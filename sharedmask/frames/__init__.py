"""One image, volume by volume: a data set of frames, one in memory.

Covers: ``FrameDataset``, what is known of frames, where they live, NIfTI and HDF5.
Does not cover: regions and their signals (``image``).

From the bottom up::

    metadata  acquisition  kernels  nifti  nfdh5  backing  store  sequence  convert  dataset
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
