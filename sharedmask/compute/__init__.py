"""A request, its plan, and the work.

Covers: parameters, memory plans, kernels, signals of rows and of streams.
Does not cover: processes that work (``workers``), paths, images that users hold (``image``).

From the bottom up::

    progress  journal  cleaning  connectivity  strategies  piles  reduction  steps  row_sums  kernels  glm
    confounds  request  plan  signals
"""
