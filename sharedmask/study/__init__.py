"""Many images: cohorts, BIDS data sets, outputs.

Covers: executors, folders of results, derivatives. Does not cover: one image (``image``), what pages show
(``reports``), options of programs (``cli``).

From the bottom up::

    tables  bids  atlases  denoising  analysis  derivatives  tasks
    completion  manifest  executors  cohort  output  group  summary  dataset
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
