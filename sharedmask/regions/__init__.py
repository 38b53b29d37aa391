"""Masks and atlases as voxel numbers on a grid; their names, tables and coverage.

Covers: reading masks and look-up tables, fitting them to an image's grid, spheres.
Does not cover: where an image's bytes live (``storage``).

From the bottom up::

    views  lut  naming  masks  sets  parcels  regions  alignment  spheres  coverage
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
