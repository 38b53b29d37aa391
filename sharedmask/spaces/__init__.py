"""Where the values of an image lie: a box of voxels, vertices and voxels of structures, or parcels of these.

Covers: comparing two spaces, the places of one as numbers on another. Does not cover: reading what files
say of them (``sources``), which places are meant (``regions``).

From the bottom up::

    space  grid  brain_models  parcellation
"""
