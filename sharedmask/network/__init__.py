"""What lesions are connected to: seeds, connectomes, statistical maps.

Covers: ``FunctionalNetworkMapper`` and ``batch_process``, connectome files, outputs.
Does not cover: signals of one image (``image``).

From the bottom up::

    subject  correlation  connectome  stat_maps  batches  mapper  output
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
