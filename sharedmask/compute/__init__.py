"""A request, its plan, and the work.

Covers: parameters, memory plans, kernels, workers, signals of rows and of streams.
Does not cover: paths, images that users hold (``image``).

From the bottom up::

    progress  journal  cleaning  failure  reduction  kernels  surroundings  streams  worker  template  pool
    confounds  request  plan  signals
"""
