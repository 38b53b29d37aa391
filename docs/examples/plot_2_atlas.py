"""
My first table
==============

The mean of each region of an atlas, at each time point, with the regions' names: in one pass over
the file, which is never held.
"""

# %%
import tempfile

import brain

folder = brain.written(tempfile.mkdtemp())
run, atlas = folder / "sub-01_bold.nii.gz", folder / "atlas_dseg.nii.gz"

# %%
# The names are in the table beside the atlas, as BIDS has it.
from sharedmask import Regions, extract

regions = Regions.from_labels(atlas, lut=folder / "atlas_dseg.tsv")
means = extract(run, regions, strategy="mean", detrend=True, standardize="zscore_sample")
print(means.shape, regions.names[:4])

# %%
# As a table for other programs.
import pandas as pd

table = pd.DataFrame(means, columns=list(regions.names))
table.to_csv(folder / "means.tsv", sep="\t", index=False)
table.iloc[:5, :6].round(2)

# %%
# The two sides of a region go together.
import matplotlib.pyplot as plt

table[["L01", "R01"]].plot(figsize=(8, 3), xlabel="volume", ylabel="standard deviations")
plt.show()

# %%
# In a shell::
#
#     sharedmask extract sub-01_bold.nii.gz --atlas atlas_dseg.nii.gz --lut atlas_dseg.tsv -o means.tsv
