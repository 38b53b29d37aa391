"""An image: what it is, and its volumes as a stream.

Covers: formats, sidecars, scaling, smoothing and resampling, rows out of volumes. Does not
cover: decompression (``decoding``), masks (``regions``), parameters (``compute``).

From the bottom up::

    volumes  layout  hdf5  values  names  sidecar  nifti  cifti  source  by_row  opening  excerpt
    transform  loader  rechunk
"""
