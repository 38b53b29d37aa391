"""
A loop of maskers, replaced
===========================

A loop of ``NiftiMasker`` loads the run once per mask. :class:`sharedmask.SharedImage` loads it once.
"""

# %%
# A run, and a mask for each region of an atlas.
import tempfile

import brain
import nibabel as nib
import numpy as np

folder = brain.written(tempfile.mkdtemp())
run = folder / "sub-01_bold.nii.gz"
labels = nib.load(folder / "atlas_dseg.nii.gz")
masks = {
    name: nib.Nifti1Image((np.asarray(labels.dataobj) == number).astype("u1"), labels.affine)
    for number, name in brain.names()
}

# %%
# Before: each mask loads the run.
from nilearn.maskers import NiftiMasker

before = {name: NiftiMasker(mask, standardize=None).fit_transform(run) for name, mask in masks.items()}

# %%
# After: all masks are taken from one copy, and the numbers are the same, bit for bit.
from sharedmask import SharedImage

with SharedImage(run) as image:
    after = image.mask_parallel(masks, n_jobs=2)
print(all(np.array_equal(after[name], before[name]) for name in masks))

# %%
# Each result has a row per time point and a column per voxel.
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
axes.imshow(after["L01"].T, aspect="auto", cmap="gray")
axes.set(xlabel="volume", ylabel="voxel of L01")
plt.show()
