"""
Grayordinates
=============

A CIFTI-2 dense series is an image like any other; it is mapped as it lies on the disk.
"""

# %%
# The left hemisphere of nilearn's ``fsaverage5`` in 20 parcels, and a run of 100 volumes over it.
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import cifti2
from nilearn.datasets import fetch_surf_fsaverage
from nilearn.surface import load_surf_mesh
from scipy.cluster.vq import kmeans2

folder = Path(tempfile.mkdtemp())
mesh = fetch_surf_fsaverage("fsaverage5")
places = load_surf_mesh(mesh["pial_left"]).coordinates
_, parcel = kmeans2(places, 20, seed=1, minit="++")
rng = np.random.default_rng(0)
rhythm = np.cumsum(rng.normal(size=100))
strength = np.linspace(-1, 1, 20)
series = rhythm[:, None] * strength[parcel] + rng.normal(scale=5, size=(100, len(parcel)))

cortex = cifti2.BrainModelAxis.from_surface(np.arange(len(parcel)), len(parcel), "CortexLeft")
run, atlas = folder / "sub-01_bold.dtseries.nii", folder / "parcels.dlabel.nii"
nib.Cifti2Image(series.astype("f4"), (cifti2.SeriesAxis(0, 2, 100), cortex)).to_filename(run)
names = {0: ("???", (0, 0, 0, 0)), **{n + 1: (f"parcel {n + 1}", (1, 1, 1, 1)) for n in range(20)}}
labels = cifti2.LabelAxis(["parcels"], [names])
nib.Cifti2Image((parcel + 1)[None].astype("f4"), (labels, cortex)).to_filename(atlas)

# %%
# How each parcel goes with the first one. Names are those of the label file.
from sharedmask import Regions, SharedImage

with SharedImage(run) as image:
    regions = Regions.from_labels(atlas, image.space)
    matrix = image.connectivity(regions)
print(regions.names[:3], image.space)

# %%
import matplotlib.pyplot as plt
from nilearn import plotting

plotting.plot_surf_stat_map(
    mesh["infl_left"],
    matrix[0][parcel],
    bg_map=mesh["sulc_left"],
    title="correlation with parcel 1",
    cmap="RdBu_r",
)
plt.show()
