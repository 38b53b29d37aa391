"""
Your own function of each region
================================

``image.map`` gives it the array of a region, in worker processes that copy nothing.
"""

# %%
import tempfile

import brain
import nibabel as nib
import numpy as np

folder = brain.written(tempfile.mkdtemp())
labels = nib.load(folder / "atlas_dseg.nii.gz")
masks = {name: np.asarray(labels.dataobj) == number for number, name in brain.names()}


# %%
# How much of what a region does, one component tells.
def homogeneity(signals):
    centred = signals - signals.mean(axis=0)
    strengths = np.linalg.svd(centred, compute_uv=False) ** 2
    return float(strengths[0] / strengths.sum())


# %%
from sharedmask import SharedImage

with SharedImage(folder / "sub-01_bold.nii.gz") as image:
    shares = image.map(homogeneity, masks, n_jobs=2, detrend=True)

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
axes.bar(list(shares), list(shares.values()))
axes.set(ylabel="share of the first component")
axes.tick_params(axis="x", labelrotation=90, labelsize=7)
plt.show()
