"""Scale: what a run costs beside its bytes, from a thousand to a hundred thousand of them.

Covers: finding runs in a BIDS tree, working on them, taking them up again, and the memory of the process that
does it, each in a process of its own. Does not cover: runs of real sizes (``cohort``, ``study``).

The tree is made of links to a few tiny files, so that what is left is what each run costs. What decompressing
them takes is measured too and stands beside it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import machine, report
from benchmarks.data import ROOT
from benchmarks.report import Bar, Row

_SPACE = "space-MNI152NLin2009cAsym"
_SHAPE = (12, 12, 12, 20)
_N_REGIONS = 20
_N_KINDS = 8  # of images, each with a name of its own
_STEPS = ("decompress", "find", "study", "study again", "page", "folder", "folder again", "callback")
_BARS = {"find": 0.5, "study": 1.5, "study again": 0.2, "folder": 1.5, "folder again": 0.2, "callback": 1.5}
"""Milliseconds for each run."""
_GROWTH = 20.0  # MiB from the fewest runs to the most


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs", type=int, nargs="+", default=(200, 1000), help="how many, one after another"
    )
    parser.add_argument("--steps", nargs="+", choices=_STEPS, default=_STEPS)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--data", type=Path, default=Path(f"/tmp/sharedmask-benchmarks-{os.geteuid()}"))
    parser.add_argument("--keep", action="store_true", help="leave trees and outputs there for the next time")


def run(arguments: argparse.Namespace) -> int:
    facts = machine.facts()
    print(f"{machine.described(facts)}\n{arguments.jobs} at a time", flush=True)
    found: dict[str, list[tuple[int, dict[str, float]]]] = {name: [] for name in arguments.steps}
    for count in arguments.runs:
        home = arguments.data / f"scale-{count}"
        _child("make", home, count, 1)
        for name in arguments.steps:
            found[name].append((count, said := _child(name, home, count, arguments.jobs)))
            print(f"{count} runs, {name}: {said['seconds']:.1f} s, {said['grown']:.0f} MiB", flush=True)
        if not arguments.keep:
            shutil.rmtree(home)
    rows = [row for name, measured in found.items() for row in _rows(name, measured)]
    return report.conclude(rows, arguments.json, {"machine": facts, "shape": _SHAPE, "jobs": arguments.jobs})


def _rows(name: str, measured: list[tuple[int, dict[str, float]]]) -> list[Row]:
    bar = Bar(_BARS[name], at_most=True) if name in _BARS else None
    section, rows = f"{name.upper()}: each; ratio in ms", []
    for count, said in measured:
        busy = f"{said['busy'] / count * 1000:.2f} ms of processor time of the process that calls"
        each, note = said["seconds"] / count, f"{busy}, which grew by {said['grown']:.0f} MiB"
        rows.append(Row(section, f"{count:,} runs", each, ratio=each * 1000, bar=bar, note=note))
    if len(measured) > 1:
        more = measured[-1][1]["grown"] - measured[0][1]["grown"]
        of = f"memory with {measured[-1][0]:,} runs beside {measured[0][0]:,}; ratio: MiB more"
        rows.append(Row(section, of, ratio=more, bar=Bar(_GROWTH, at_most=True), ours=0, unit="MiB"))
    return rows


def _child(step: str, home: Path, count: int, jobs: int) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.scale"]
    command += [step, str(home), str(count), str(jobs)]
    found = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    said: dict[str, float] = json.loads(found.stdout)
    return said


# --- in a process of its own ---------------------------------------------------------------------


def _main(step: str, home: Path, count: int, jobs: int) -> None:
    if step == "make":
        _make(home, count)
        print("{}")
        return
    work = _PREPARED[step.removesuffix(" again")](home, jobs)
    before, busy, started = _peak(), time.process_time(), time.perf_counter()
    number = work()
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    if number != count:
        raise SystemExit(f"{step}: {number} runs of {count}")
    print(json.dumps({"seconds": seconds, "busy": busy, "grown": (_peak() - before) / 2**20}))


def _peak() -> int:
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _images(home: Path) -> list[str]:
    return sorted(map(str, (home / "in").glob("sub-*/func/*_bold.nii.gz")))


def _atlas(home: Path) -> Path:
    return home / f"tpl-{_SPACE[6:]}_atlas-Toy_dseg.nii.gz"


def _decompress(home: Path, jobs: int) -> Callable[[], int]:
    from concurrent.futures import ThreadPoolExecutor

    from isal import igzip

    images = _images(home)

    def one(path: str) -> int:
        with igzip.open(path) as stream:
            return len(stream.read())

    def work() -> int:
        with ThreadPoolExecutor(jobs) as threads:
            return len(list(threads.map(one, images)))

    return work


def _find(home: Path, jobs: int) -> Callable[[], int]:
    from sharedmask.study.atlases import find_atlas
    from sharedmask.study.bids import find_runs
    from sharedmask.study.dataset import draw_manifests

    atlas, count = find_atlas(_atlas(home)), len(find_runs(home / "in"))

    def work() -> int:
        next(draw_manifests(home / "in", home / "out", [atlas]))  # all are found before the first is drawn
        return count

    return work


def _study(home: Path, jobs: int) -> Callable[[], int]:
    from sharedmask.study.analysis import Outputs
    from sharedmask.study.atlases import find_atlas
    from sharedmask.study.dataset import analyse

    atlas = find_atlas(_atlas(home))

    def work() -> int:
        # A part of a study, though all of it, leaves its page to whoever is last.
        done = analyse(home / "in", home / "out", [atlas], Outputs(reports=False), n_jobs=jobs, shard="1/1")
        return len(done.complete) + len(done.skipped)

    return work


def _page(home: Path, jobs: int) -> Callable[[], int]:
    from sharedmask.study.summary import summarise

    def work() -> int:
        summarise(home / "out")
        return len((home / "out" / "group_qc.tsv").read_text().splitlines()) - 1

    return work


def _folder(home: Path, jobs: int) -> Callable[[], int]:
    from sharedmask.study.output import extract_to

    images, atlas = _images(home), str(_atlas(home))

    def work() -> int:
        done = extract_to(home / "folder", images, atlas, n_jobs=jobs)
        return len(done.complete) + len(done.skipped)

    return work


def _callback(home: Path, jobs: int) -> Callable[[], int]:
    from sharedmask import extract_many

    images, atlas = _images(home), str(_atlas(home))

    def work() -> int:
        asked: dict[str, Any] = {"strategy": "mean", "n_jobs": jobs, "on_result": lambda *_: None}
        return len(extract_many(images, atlas, **asked).complete)

    return work


_PREPARED: dict[str, Callable[[Path, int], Callable[[], Any]]] = {
    "decompress": _decompress,
    "find": _find,
    "study": _study,
    "page": _page,
    "folder": _folder,
    "callback": _callback,
}


def _make(home: Path, count: int) -> None:
    """A tree of ``count`` runs, each with a sidecar, a mask and confounds: links to a few files."""
    import nibabel as nib
    import numpy as np

    if (home / "done").exists():
        return
    (home / "kinds").mkdir(parents=True, exist_ok=True)
    rng, affine = np.random.default_rng(0), np.diag([2.0, 2.0, 2.0, 1.0])
    labels = rng.integers(0, _N_REGIONS + 1, _SHAPE[:3]).astype(np.int16)
    nib.save(nib.Nifti1Image(labels, affine), _atlas(home))
    table = "framewise_displacement\n" + "0.1\n" * _SHAPE[3]
    for kind in range(_N_KINDS):
        bold = nib.Nifti1Image(rng.normal(1000, 50, _SHAPE).astype(np.int16), affine)
        bold.header.set_xyzt_units("mm", "sec")
        bold.header["pixdim"][4] = 2.0
        nib.save(bold, home / "kinds" / f"{kind}_bold.nii.gz")
        mask = nib.Nifti1Image(np.ones(_SHAPE[:3], np.uint8), affine)
        nib.save(mask, home / "kinds" / f"{kind}_mask.nii.gz")
        (home / "kinds" / f"{kind}_bold.json").write_text('{"RepetitionTime": 2.0}')
        (home / "kinds" / f"{kind}_confounds.tsv").write_text(table)
    description = {"Name": "Runs", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}
    (home / "in").mkdir(exist_ok=True)
    (home / "in" / "dataset_description.json").write_text(json.dumps(description))
    for number in range(count):
        folder = home / "in" / f"sub-{number:06}" / "func"
        folder.mkdir(parents=True)
        stem, kind = f"{folder}/sub-{number:06}_task-rest", f"{home}/kinds/{number % _N_KINDS}"
        os.link(f"{kind}_bold.nii.gz", f"{stem}_{_SPACE}_desc-preproc_bold.nii.gz")
        os.link(f"{kind}_bold.json", f"{stem}_{_SPACE}_desc-preproc_bold.json")
        os.link(f"{kind}_mask.nii.gz", f"{stem}_{_SPACE}_desc-brain_mask.nii.gz")
        os.link(f"{kind}_confounds.tsv", f"{stem}_desc-confounds_timeseries.tsv")
    (home / "done").touch()


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
