"""Mask one large fMRI run with many regions in parallel, from one copy in shared memory.

The public names, imported when first used: ``import sharedmask`` costs what numpy and nibabel cost.
"""

import lazy_loader

from sharedmask._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
