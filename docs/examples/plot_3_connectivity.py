"""
Connectivity and seed maps
==========================

A matrix of all regions, and maps of what a region goes with, from the rows that are held.
"""

# %%
import tempfile

import brain

folder = brain.written(tempfile.mkdtemp())
run, atlas = folder / "sub-01_bold.nii.gz", folder / "atlas_dseg.nii.gz"

# %%
from sharedmask import SharedImage

with SharedImage(run) as image:
    matrix = image.connectivity(atlas, kind="correlation", detrend=True)
    maps = image.seed_maps(atlas, detrend=True)

# %%
import matplotlib.pyplot as plt
import numpy as np
from nilearn import plotting
from nilearn.image import index_img

names = [name for _, name in brain.names()]
figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
shown = axes.imshow(np.asarray(matrix), vmin=-1, vmax=1, cmap="RdBu_r")
axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
axes.set_yticks(range(len(names)), names, fontsize=7)
figure.colorbar(shown, label="correlation")
plt.show()

# %%
# What region L01 goes with.
plotting.plot_stat_map(index_img(maps, 0), threshold=0.3, title="L01")
plt.show()
