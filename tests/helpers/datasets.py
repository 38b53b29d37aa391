"""A small preprocessed BIDS data set, as fMRIPrep leaves it."""

import json
import re

import numpy as np
from images import AFFINE, SHAPE, bold, niimg, random_masks, save

from sharedmask.study.analysis import Outputs

SPACE = "space-MNI152NLin2009cAsym"


def preprocessed(root, subjects=("01", "02"), tasks=("rest",), n_timepoints=40):
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


# --- a data set with everything that goes wrong at once ------------------------------------------

MNI, NATIVE = "space-MNI152NLin2009cAsym", "space-T1w"


def run_of(root, stem, *, space=MNI, seed=0, n_timepoints=24, t_r=2.0):
    """A bold image alone; its path."""
    entities = dict(part.split("-", 1) for part in stem.split("_"))
    sessions = [f"ses-{entities['ses']}"] if "ses" in entities else []
    func = root.joinpath(f"sub-{entities['sub']}", *sessions, "func")
    func.mkdir(parents=True, exist_ok=True)
    values = bold((*SHAPE, n_timepoints) if n_timepoints else SHAPE, seed=seed)
    return save(func / f"{stem}_{space}_desc-preproc_bold.nii.gz", values, t_r=t_r)


def mask_of(path, name, seed=0, extension=".nii.gz"):
    """A brain mask beside ``path``."""
    inside = random_masks(1, seed=seed, density=0.8)[0].astype("uint8")
    return save(path.with_name(f"{name}_desc-brain_mask{extension}"), inside)


def confounds_of(path, stem, seed=0, n_timepoints=24, moves=(), more=False):
    """fMRIPrep's table of confounds beside ``path``; the head moves much in the volumes of ``moves``.

    With ``more`` derivatives begin with ``n/a``, and there are components of CompCor and ICA-AROMA.
    """
    axes = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    ends = ("", "_derivative1", "_power2", "_derivative1_power2")
    names = [f"{name}{end}" for name in (*axes, "csf", "white_matter", "global_signal") for end in ends]
    table = dict(zip(names, np.random.default_rng(seed).normal(size=(len(names), n_timepoints)), strict=True))
    table["cosine00"] = np.cos(np.linspace(0, np.pi, n_timepoints))
    table["framewise_displacement"] = np.where(np.isin(np.arange(n_timepoints), moves), 5.0, 0.1)
    table["std_dvars"] = np.ones(n_timepoints)
    components = {}
    if more:
        for name in table:
            if "derivative1" in name:
                table[name][0] = np.nan
        for letter, mask in (("c", "CSF"), ("w", "WM"), ("a", "combined")):
            for number in range(3):
                name = f"{letter}_comp_cor_{number:02}"
                components[name] = {"Method": "aCompCor", "Mask": mask, "Retained": True}
        names = [*components, "aroma_motion_01", "aroma_motion_02"]
        values = np.random.default_rng(seed + 1).normal(size=(len(names), n_timepoints))
        table |= dict(zip(names, values, strict=True))
    lines = [
        "\t".join(table),
        *("\t".join(map(repr, map(float, row))) for row in zip(*table.values(), strict=True)),
    ]
    lines = [line.replace("nan", "n/a") for line in lines]
    path = path.with_name(f"{stem}_desc-confounds_timeseries.tsv")
    path.write_text("\n".join(lines) + "\n")
    path.with_suffix(".json").write_text(json.dumps(components))
    return path


def troubled(root):
    """A preprocessed data set with everything that goes wrong at once.

    Returns
    -------
    dict
        Name of a run -> its mask, its confounds and its repetition time, or what its failure says.
    """
    root.mkdir(parents=True)
    description = {"Name": "Troubled", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}
    (root / "dataset_description.json").write_text(json.dumps(description))
    (root / "task-rest_bold.json").write_text(json.dumps({"RepetitionTime": 2.0}))
    (root / "task-nback_bold.json").write_text(json.dumps({"RepetitionTime": 2.0, "StartTime": float("nan")}))
    expected = {}

    def add(stem, seed, *, mask="", extension=".nii.gz", confounds=True, **facts):
        path = run_of(root, stem, seed=seed, **facts)
        table = (
            confounds_of(path, stem, seed, facts.get("n_timepoints", 24) or 1, moves=(3, 4))
            if confounds
            else None
        )
        found = mask_of(path, mask, seed, extension) if mask else None
        expected[path.name.removesuffix(".nii.gz")] = {"bold": path, "mask": found, "confounds": table}
        return path

    # As fMRIPrep leaves it, its repetition time inherited; and once more in the space of the head.
    add("sub-01_ses-1_task-rest", 1, mask=f"sub-01_ses-1_task-rest_{MNI}")
    path = run_of(root, "sub-01_ses-1_task-rest", space=NATIVE, seed=1)
    mask_of(path, f"sub-01_ses-1_task-rest_{NATIVE}", 1)
    expected[path.name.removesuffix(".nii.gz")] = "is in the space MNI152NLin2009cAsym, .* in T1w"
    # One mask for two echoes; another part's mask, not compressed; a header without a repetition time.
    add("sub-01_ses-2_task-rest_echo-1", 2, mask=f"sub-01_ses-2_task-rest_{MNI}", t_r=0.0)
    add("sub-01_ses-2_task-rest_echo-2", 3, t_r=0.0)
    first, second = (f"sub-01_ses-2_task-rest_echo-{echo}_{MNI}_desc-preproc_bold" for echo in (1, 2))
    expected[second]["mask"] = expected[first]["mask"]
    add(
        "sub-02_ses-1_task-rest_part-mag",
        4,
        mask=f"sub-02_ses-1_task-rest_part-phase_{MNI}",
        extension=".nii",
    )
    add("sub-02_ses-1_task-nback_run-1", 5, mask=f"sub-02_ses-1_task-nback_run-01_{MNI}")
    # Sidecars that are not fetched, or no UTF-8.
    path = add("sub-02_ses-2_task-rest", 6, mask=f"sub-02_ses-2_task-rest_{MNI}")
    path.with_name(path.name.replace(".nii.gz", ".json")).symlink_to("../.git/annex/objects/gone")
    expected[path.name.removesuffix(".nii.gz")] = r"_bold\.json is a link to .*gone, .*datalad get"
    path = add("sub-02_ses-2_task-nback", 7, mask=f"sub-02_ses-2_task-nback_{MNI}")
    path.with_name(path.name.replace(".nii.gz", ".json")).write_bytes('{"Name": "Müller"}'.encode("latin-1"))
    expected[path.name.removesuffix(".nii.gz")] = r"_bold\.json cannot be read: it is not UTF-8"
    # A mask that is not fetched, a run of one volume, one with neither mask nor confounds.
    path = add("sub-03_ses-1_task-rest", 8)
    path.with_name(f"sub-03_ses-1_task-rest_{MNI}_desc-brain_mask.nii.gz").symlink_to("gone")
    expected[path.name.removesuffix(".nii.gz")] = r"brain_mask\.nii\.gz is a link to .*datalad get"
    add("sub-03_ses-1_task-nback", 9, mask=f"sub-03_ses-1_task-nback_{MNI}", n_timepoints=0)
    add("sub-03_ses-2_task-rest", 10, confounds=False)
    (path.parent / "tmp_bold.nii.gz").write_bytes(path.read_bytes())
    (path.parent / f"sub-03_ses-1_task-rest_{MNI}_desc-preproc (copy)_bold.nii.gz").write_bytes(b"")
    return expected


def parcellations(folder):
    """Two atlases of one name that differ in ``desc`` only."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for n_regions in (3, 5):
        labels = np.random.default_rng(n_regions).integers(0, n_regions + 1, SHAPE).astype("int16")
        path = folder / f"tpl-MNI152NLin2009cAsym_atlas-Toy_desc-{n_regions}Parcels_dseg.nii.gz"
        niimg(labels, AFFINE).to_filename(path)
        lines = ["index\tname", *(f"{index}\tparcel {index}" for index in range(1, n_regions + 1))]
        path.with_name(path.name.replace(".nii.gz", ".tsv")).write_text("\n".join(lines) + "\n")
        found.append(path)
    return found


def signals(out, subject="01", name="Toy", stat="mean", desc=""):
    folder = out / f"sub-{subject}" / "func"
    return folder / f"sub-{subject}_task-rest_{SPACE}_atlas-{name}_stat-{stat}{desc}_timeseries.tsv"


def text(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.read_text()))


PLAIN = Outputs(min_coverage=0.0, reports=False)
