"""What files of surfaces hold: GIFTI and FreeSurfer's, of one hemisphere or of two.

Covers: reading them whole, which surface they are of. Does not cover: dense series (``cifti``),
what is done with their values (``sources``).

From the bottom up::

    surface  gifti  freesurfer
"""
