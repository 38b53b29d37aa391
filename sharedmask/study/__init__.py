"""Many images: cohorts, BIDS data sets, outputs, reports.

Covers: executors, folders of results, derivatives, pages. Does not cover: one image (``image``), options of
programs (``cli``).

From the bottom up::

    tables  bids  atlases  denoising  analysis  figures  report
    derivatives  manifest  executors  cohort  output  dataset  group
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
