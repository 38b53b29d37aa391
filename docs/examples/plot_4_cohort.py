"""
Many runs
=========

One call for all runs; a run that fails is named, and the others are done.
"""

# %%
import tempfile

import brain

folder = brain.written(tempfile.mkdtemp(), n_runs=4)
(folder / "sub-05_bold.nii.gz").write_bytes(b"cut off")

# %%
from sharedmask import extract_many

runs = sorted(folder.glob("sub-*_bold.nii.gz"))
found = extract_many(runs, folder / "atlas_dseg.nii.gz", strategy="mean", n_jobs=2, detrend=True)
for error in found.errors.values():
    print(str(error).replace(str(folder), "FOLDER"))

# %%
# The mean matrix of the runs that worked.
import matplotlib.pyplot as plt
import numpy as np

matrices = [np.corrcoef(signals.T) for signals in found.results.values()]
print(len(matrices))
figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
figure.colorbar(axes.imshow(np.mean(matrices, axis=0), vmin=-1, vmax=1, cmap="RdBu_r"))
axes.set(xlabel="region", ylabel="region")
plt.show()
