"""
Volume by volume
================

A run of any size, one volume in memory: :class:`sharedmask.FrameDataset`.
"""

# %%
import tempfile

import brain

folder = brain.written(tempfile.mkdtemp())

# %%
# How far each volume lies from the mean of all.
import numpy as np

from sharedmask import FrameDataset

with FrameDataset(folder / "sub-01_bold.nii.gz") as frames:
    mean = frames.mean()
    distance = [float(np.sqrt(np.mean((frame - mean) ** 2))) for frame in frames.frames()]

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
axes.plot(distance)
axes.set(xlabel="volume", ylabel="distance from the mean")
plt.show()
