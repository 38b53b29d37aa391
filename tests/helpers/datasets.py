"""A small preprocessed BIDS data set, as fMRIPrep leaves it."""

import json

import numpy as np
from images import AFFINE, SHAPE, bold, niimg, random_masks, save

SPACE = "space-MNI152NLin2009cAsym"


def preprocessed(root, subjects=("01", "02"), tasks=("rest",), n_timepoints=24):
    """``root``, with a run per subject and task, its mask, reference, confounds and sidecar."""
    root.mkdir(parents=True)
    description = {"Name": "Preprocessed", "BIDSVersion": "1.10.0", "DatasetType": "derivative",
                   "GeneratedBy": [{"Name": "fMRIPrep", "Version": "25.0.0"}]}  # fmt: skip
    (root / "dataset_description.json").write_text(json.dumps(description))
    for number, subject in enumerate(subjects):
        func = root / f"sub-{subject}" / "func"
        func.mkdir(parents=True)
        for task in tasks:
            _run(func, f"sub-{subject}_task-{task}", number, n_timepoints)
    return root


def _run(func, stem, seed, n_timepoints):
    inside = random_masks(1, seed=seed, density=0.8)[0]
    values = bold((*SHAPE, n_timepoints), seed=seed)
    save(func / f"{stem}_{SPACE}_desc-preproc_bold.nii.gz", values, t_r=2.0)
    save(func / f"{stem}_{SPACE}_desc-brain_mask.nii.gz", inside.astype("uint8"))
    save(func / f"{stem}_{SPACE}_boldref.nii.gz", values.mean(-1).astype("float32"))
    sidecar = {"RepetitionTime": 2.0, "StartTime": 1.0, "TaskName": "rest"}
    (func / f"{stem}_{SPACE}_desc-preproc_bold.json").write_text(json.dumps(sidecar))
    columns = [*(f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"), "csf", "white_matter"]
    names = [
        f"{name}{end}" for name in columns for end in ("", "_derivative1", "_power2", "_derivative1_power2")
    ]
    names += ["cosine00", "cosine01"]
    table = np.random.default_rng(seed).normal(size=(n_timepoints, len(names)))
    lines = ["\t".join(names), *("\t".join(f"{value:.8f}" for value in row) for row in table)]
    (func / f"{stem}_desc-confounds_timeseries.tsv").write_text("\n".join(lines) + "\n")
    facts = json.dumps({name: {} for name in names})
    (func / f"{stem}_desc-confounds_timeseries.json").write_text(facts)


def atlas(folder, name="Toy", n_regions=6, seed=9):
    """The path of a label image with a table of names beside it; the last label has no voxel."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.random.default_rng(seed).integers(0, n_regions + 1, SHAPE).astype("int16")
    path = folder / f"tpl-MNI152NLin2009cAsym_atlas-{name}_dseg.nii.gz"
    niimg(labels, AFFINE).to_filename(path)
    lines = ["index\tname", *(f"{index}\tregion {index}" for index in range(1, n_regions + 2))]
    path.with_name(path.name.replace(".nii.gz", ".tsv")).write_text("\n".join(lines) + "\n")
    return path
