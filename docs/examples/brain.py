"""A small brain for the examples: a run, an atlas with names, lesions, in a folder of their own."""

from pathlib import Path

import nibabel as nib
import numpy as np
from nilearn.datasets import load_mni152_brain_mask
from nilearn.image import resample_img
from scipy.cluster.vq import kmeans2

N_REGIONS = 30
T_R = 2.0


def mask():
    """The brain of nilearn's template, in voxels of 6 mm."""
    template = load_mni152_brain_mask(resolution=6)
    return resample_img(template, np.diag([6, 6, 6]), interpolation="nearest", copy_header=True,
                        force_resample=True)  # fmt: skip


def atlas():
    """Numbers of regions: voxels that are near to each other."""
    brain = mask()
    inside = brain.get_fdata() > 0
    places = np.argwhere(inside) @ brain.affine[:3, :3].T + brain.affine[:3, 3]
    # The two sides mirror each other: left ones are odd.
    folded = np.abs(places * [1, 1, 1])
    folded[:, 1:] = places[:, 1:]
    _, number = kmeans2(folded, N_REGIONS // 2, seed=1, minit="++")
    labels = np.zeros(inside.shape, "i2")
    labels[inside] = 1 + 2 * number + (places[:, 0] > 0)
    return nib.Nifti1Image(labels, brain.affine)


def names():
    """Index and name of each region."""
    numbers = range(1, N_REGIONS + 1)
    return [(number, f"{'LR'[(number - 1) % 2]}{(number + 1) // 2:02d}") for number in numbers]


def run(seed=0, n_timepoints=120):
    """A run whose regions follow a few slow rhythms; the two sides of a region nearly the same one."""
    rng = np.random.default_rng(seed)
    regions = atlas()
    labels = np.asarray(regions.dataobj)
    rhythms = np.cumsum(rng.normal(size=(4, n_timepoints)), axis=1)
    rhythms -= rhythms.mean(axis=1, keepdims=True)
    weights = np.random.default_rng(7).normal(size=(N_REGIONS // 2, 4)).repeat(2, axis=0)
    series = weights @ rhythms + rng.normal(size=(N_REGIONS, n_timepoints))
    data = 1000 + 8 * np.vstack([np.zeros(n_timepoints), series])[labels]
    data += rng.normal(scale=15, size=data.shape)
    data[labels == 0] = 0
    image = nib.Nifti1Image(data.astype("i2"), regions.affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = T_R
    return image


def written(folder, n_runs=1):
    """``folder`` with runs, ``atlas_dseg.nii.gz`` and its table, as users have them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, n_runs + 1):
        nib.save(run(seed=number), folder / f"sub-{number:02d}_bold.nii.gz")
    nib.save(atlas(), folder / "atlas_dseg.nii.gz")
    rows = "".join(f"{number}\t{name}\n" for number, name in names())
    (folder / "atlas_dseg.tsv").write_text("index\tname\n" + rows)
    return folder
