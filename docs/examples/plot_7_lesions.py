"""
What lesions are connected to
=============================

Maps of lesions over a connectome of healthy subjects: :class:`sharedmask.FunctionalNetworkMapper`.
"""

# %%
# A connectome of eight subjects, and two lesions.
import tempfile

import brain
import h5py
import nibabel as nib
import numpy as np
from nilearn.masking import apply_mask

folder = brain.written(tempfile.mkdtemp())
mask = brain.mask()
with h5py.File(folder / "connectome.h5", "w") as file:
    series = [apply_mask(brain.run(seed), mask) for seed in range(8)]
    file["timeseries"] = np.stack(series).astype("f4")
    file["mask_indices"] = np.stack(np.nonzero(np.asarray(mask.dataobj)))
    file["mask_affine"] = mask.affine
    file.attrs["mask_shape"] = mask.shape

labels = np.asarray(brain.atlas().dataobj)
lesions = {
    name: nib.Nifti1Image((labels == number).astype("u1"), mask.affine) for number, name in brain.names()[:2]
}

# %%
from sharedmask import FunctionalNetworkMapper

mapper = FunctionalNetworkMapper(method="boes").fit(folder / "connectome.h5")
maps = mapper.transform(lesions)

# %%
import matplotlib.pyplot as plt
from nilearn import plotting

plotting.plot_stat_map(maps["L01"].rmap, threshold=0.3, title="L01, mean r of eight subjects")
plt.show()
