"""A study: a preprocessed data set to tables and matrices, beside nilearn in a joblib loop.

Covers: time and memory of both, in processes of their own, in turns, and how often ours decodes a run. Does
not cover: one run (``core``), many runs without confounds (``cohort``).

Asked for are two atlases, the confounds of the strategy "simple", coverage and correlation matrices; all are
written.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import machine, memory, report
from benchmarks.data import ROOT
from benchmarks.report import Bar, Row

_SPACE = "space-MNI152NLin2009cAsym"
_ATLASES = (400, 1000)
_SECTION = "STUDY: all runs, medians over rounds"
_LOOK_SECONDS = 0.1

_OURS = """
import sys
from sharedmask.cli.bids import main
folder, out, jobs, *atlases = sys.argv[1:]
sys.argv[1:] = [folder, out, "participant", "--atlases", *atlases, "--denoise-strategy", "simple",
                "--connectivity", "correlation", "--no-reports", "-j", jobs]
main()
"""

_LOOP = """
import sys, warnings
from pathlib import Path
import nibabel as nib
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from nilearn.connectome import ConnectivityMeasure
from nilearn.interfaces.fmriprep import load_confounds_strategy
from nilearn.maskers import NiftiLabelsMasker

def extract(bold, out, atlases):
    warnings.simplefilter("ignore")
    mask = bold.replace("desc-preproc_bold", "desc-brain_mask")
    confounds, kept = load_confounds_strategy(bold, "simple")
    inside = np.asarray(nib.load(mask).dataobj) != 0
    for atlas in atlases:
        labels = np.asarray(nib.load(atlas).dataobj)
        masker = NiftiLabelsMasker(atlas, mask_img=mask, standardize=None, reports=False)
        signals = masker.fit_transform(bold, confounds=confounds, sample_mask=kept)
        sizes = np.bincount(labels.ravel())[1:]
        coverage = np.bincount(labels[inside], minlength=len(sizes) + 1)[1:] / sizes
        matrix = ConnectivityMeasure(kind="correlation", standardize=None).fit_transform([signals])[0]
        stem = f"{out}/{Path(bold).name.split('_desc')[0]}_{Path(atlas).name.split('_')[1]}"
        for name, table in (("timeseries", signals), ("coverage", coverage), ("relmat", matrix)):
            pd.DataFrame(table).to_csv(f"{stem}_{name}.tsv", sep="\\t", index=False)

if __name__ == "__main__":
    folder, out, jobs, *atlases = sys.argv[1:]
    Path(out).mkdir(parents=True)
    bolds = sorted(map(str, Path(folder).rglob("*desc-preproc_bold.nii.gz")))
    Parallel(n_jobs=int(jobs))(delayed(extract)(bold, out, atlases) for bold in bolds)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=8, help="how many (default: %(default)s)")
    parser.add_argument(
        "--shape", type=int, nargs=4, default=(97, 115, 97, 200), help="of a run (default: 2 mm, 200 volumes)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--data", type=Path, default=Path(f"/tmp/sharedmask-benchmarks-{os.geteuid()}"))


def run(arguments: argparse.Namespace) -> int:
    facts = machine.facts()
    shape, n_jobs = tuple(arguments.shape), len(os.sched_getaffinity(0))
    home = arguments.data / f"study-{'x'.join(map(str, shape))}-{arguments.runs}"
    made = [sys.executable, "-m", "benchmarks.study", str(home), str(arguments.runs), *map(str, shape)]
    subprocess.run(made, cwd=ROOT, check=True)  # this process maps no numpy, which would hide theirs
    print(f"{machine.described(facts)}\n{arguments.runs} runs of {shape}, {n_jobs} at a time", flush=True)
    seconds: dict[str, list[float]] = {"ours": [], "loop": []}
    peaks: dict[str, list[int]] = {"ours": [], "loop": []}
    for number in range(arguments.repeats):
        for name, script in (("ours", _OURS), ("loop", _LOOP)):
            out = home / f"{name}-{number}-{os.getpid()}"
            took, peak = _watched(script, home, out, n_jobs)
            seconds[name].append(took)
            peaks[name].append(peak)
            print(f"{name}: {took:.1f} s, {peak / 2**20:.0f} MiB", flush=True)
    rows = _rows(seconds, peaks, f"{arguments.repeats} rounds, {n_jobs} at a time")
    rows.append(_decodes(home))
    return report.conclude(rows, arguments.json, {"machine": facts, "runs": arguments.runs, "shape": shape})


def _rows(seconds: dict[str, list[float]], peaks: dict[str, list[int]], note: str) -> list[Row]:
    ours, loop = median(seconds["ours"]), median(seconds["loop"])
    held, theirs = median(peaks["ours"]) / 2**20, median(peaks["loop"]) / 2**20
    faster, smaller = Bar(4, at_most=False), Bar(1 / 5, at_most=True)
    return [
        Row(_SECTION, "loop / sharedmask-bids", ours, loop, ratio=loop / ours, bar=faster, note=note),
        Row(
            _SECTION,
            "sharedmask-bids / loop",
            held,
            theirs,
            unit="MiB",
            ratio=held / theirs,
            bar=smaller,
            note=note,
        ),
    ]


def _watched(script: str, home: Path, out: Path, n_jobs: int) -> tuple[float, int]:
    """Seconds of a process of its own, and the most that it and its children held."""
    atlases = sorted(map(str, (home / "atlases").glob("*.nii.gz")))
    file = home / "script.py"
    file.write_text(script)  # joblib's workers have to find its functions
    command = [sys.executable, str(file), str(home / "in"), str(out), str(n_jobs), *atlases]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    started, peak = time.perf_counter(), 0
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, memory.look(process.pid)[0])
            time.sleep(_LOOK_SECONDS)
    took = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{out.name} failed with exit code {process.returncode}")
    return took, peak


def _decodes(home: Path) -> Row:
    """How often the images of one subject are decoded, in a process of its own."""
    script = """
import sys, tempfile
from collections import Counter
from sharedmask.sources.source import Source
counts, volumes = Counter(), Source.volumes
def counted(self):
    counts[self.name] += 1
    return volumes(self)
Source.volumes = counted
from sharedmask.study.analysis import Outputs
from sharedmask.study.atlases import find_atlas
from sharedmask.study.dataset import analyse
atlases = [find_atlas(path) for path in sys.argv[2:]]
with tempfile.TemporaryDirectory() as out:
    analyse(sys.argv[1], out, atlases, Outputs(connectivity=["correlation"]), denoise_strategy="simple",
            filters={"sub": "01"}, n_jobs=1)
print(max(count for name, count in counts.items() if name.endswith("_bold.nii.gz")))
"""
    atlases = sorted(map(str, (home / "atlases").glob("*.nii.gz")))
    command = [sys.executable, "-W", "ignore", "-c", script, str(home / "in"), *atlases]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    count = float(found.stdout.split()[-1])
    return Row(_SECTION, "times that a run is decoded", count, 1.0, ratio=count, bar=Bar(1, at_most=True))


# --- the data set, made in a process of its own --------------------------------------------------


def _generate(home: Path, n_runs: int, shape: tuple[int, ...]) -> None:
    """Runs of int16 as fMRIPrep leaves them, with masks, references and confounds; and two atlases."""
    import nibabel as nib
    import numpy as np

    if (home / "done").exists():
        return
    rng = np.random.default_rng(0)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape[:3]), indexing="ij"))
    brain = (grid**2).sum(axis=0) < 0.85**2

    def save(values: Any, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(values, affine), path)

    for n_regions in _ATLASES:
        labels = np.zeros(shape[:3], np.int16)
        labels[brain] = np.sort(rng.integers(1, n_regions + 1, brain.sum()))
        save(labels, home / "atlases" / f"tpl-MNI152NLin2009cAsym_atlas-Toy{n_regions}_dseg.nii.gz")
    description = {"Name": "Runs", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}
    (home / "in").mkdir(parents=True, exist_ok=True)
    (home / "in" / "dataset_description.json").write_text(json.dumps(description))
    mean = np.where(brain, 1200 + 300 * grid[0], 0)
    for number in range(1, n_runs + 1):
        stem = home / "in" / f"sub-{number:02}" / "func" / f"sub-{number:02}_task-rest"
        values = np.zeros(shape, np.int16)
        for t in range(shape[3]):
            values[brain, t] = mean[brain] + rng.normal(0, 15, brain.sum())
        save(values, Path(f"{stem}_{_SPACE}_desc-preproc_bold.nii.gz"))
        save(brain.astype(np.uint8), Path(f"{stem}_{_SPACE}_desc-brain_mask.nii.gz"))
        save(values.mean(axis=3).astype(np.float32), Path(f"{stem}_{_SPACE}_boldref.nii.gz"))
        Path(f"{stem}_{_SPACE}_desc-preproc_bold.json").write_text('{"RepetitionTime": 2.0}')
        _write_confounds(stem, shape[3], rng)
    (home / "done").touch()


def _write_confounds(stem: Path, n_timepoints: int, rng: Any) -> None:
    axes = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    ends = ("", "_derivative1", "_power2", "_derivative1_power2")
    names = [f"{name}{end}" for name in (*axes, "csf", "white_matter") for end in ends]
    names += ["cosine00", "cosine01", "framewise_displacement", "std_dvars"]
    table = rng.random((n_timepoints, len(names)))
    rows = ["\t".join(names), *("\t".join(f"{value:.8f}" for value in row) for row in table)]
    Path(f"{stem}_desc-confounds_timeseries.tsv").write_text("\n".join(rows) + "\n")
    Path(f"{stem}_desc-confounds_timeseries.json").write_text("{}")


if __name__ == "__main__":
    _generate(Path(sys.argv[1]), int(sys.argv[2]), tuple(map(int, sys.argv[3:])))
