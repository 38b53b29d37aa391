"""An image: what it is, and its volumes as a stream.

Covers: formats, decompression, scaling, smoothing and resampling, rows out of volumes. Does not cover: masks
(``regions``), parameters (``compute``).

From the bottom up::

    grid  codecs  values  nifti  source  transform  loader  rechunk
"""
