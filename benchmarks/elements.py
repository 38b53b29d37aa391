"""Grayordinates: a dense series as large as fMRIPrep makes it, beside reading and copying it.

Covers: 400 parcels from a cold file, from a held one, in a first call beside nibabel and a loop over labels;
the bytes that one region of a mapped series reads. Does not cover: volumes (``core``), shared stores
(``sharing``).

The series is generated once: 91,282 grayordinates by 600 volumes of float32, 219 MB. Those of a first call
run in processes of their own, whose imports are not timed.
"""

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import data, machine, report
from benchmarks.timing import Contender, Times, take_turns

_VERTICES, _CORTEX, _BOX = 32492, (29696, 29716), (91, 109, 91)
_N_ELEMENTS, _N_VOLUMES, _N_PARCELS = 91282, 600, 400
_PIECE = 2**20
_COLD, _HELD, _FIRST, _SMALL, _BYTES = (
    report.Bar(1.3, at_most=True),
    report.Bar(1.2, at_most=True),
    report.Bar(10, at_most=False),
    report.Bar(0.1, at_most=True),
    report.Bar(1.3, at_most=True),
)

# Each prints the seconds and the bytes that it grew by, from when all that it needs is imported.
_CHILD = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
run, atlas = sys.argv[1:]
{imports}
Path("/proc/self/clear_refs").write_text("5")
def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
before, start = peak(), time.perf_counter()
{work}
print(json.dumps([time.perf_counter() - start, peak() - before, float(np.asarray(signals, float).sum())]))
"""
_OURS = _CHILD.format(
    imports="import sharedmask.image.extraction\nfrom sharedmask import extract",
    work='signals = extract(run, atlas, strategy="mean")',
)
_LOOP = _CHILD.format(
    imports="import nibabel as nib",
    work="""values = nib.load(run).get_fdata()
labels = np.asarray(nib.load(atlas).dataobj)[0]
signals = np.stack([values[:, labels == one].mean(axis=1) for one in range(1, 401)], axis=1)""",
)
_REGION = """
import json, sys
from sharedmask import SharedImage

def read_bytes():
    with open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("read_bytes"))

with SharedImage(sys.argv[1], store="file") as image:
    image.load()
    before = read_bytes()
    signals = image.mask("CortexLeft")
    print(json.dumps([read_bytes() - before, signals.nbytes]))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there, too")
    parser.add_argument("--data", type=Path, default=data.default_folder(), metavar="FOLDER",
                        help="where the series is kept (default: %(default)s)")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    facts = machine.facts()
    print(machine.described(facts), flush=True)
    series, atlas = prepare(arguments.data.resolve())
    rows = [*_timed(series, atlas, arguments.repeats), *_first_calls(series, atlas, arguments.repeats)]
    rows.append(_one_region(series))
    return report.conclude(rows, arguments.json, {"machine": facts, "repeats": arguments.repeats})


def prepare(folder: Path) -> tuple[Path, Path]:
    """The series and its atlas, made if they are not there."""
    import nibabel as nib
    from nibabel.cifti2 import LabelAxis, SeriesAxis

    series, atlas = folder / "elements.dtseries.nii", folder / "elements.dlabel.nii"
    if series.exists() and atlas.exists():
        return series, atlas
    folder.mkdir(parents=True, exist_ok=True)
    axis, rng = _axis(), np.random.default_rng(0)
    values = rng.standard_normal((_N_ELEMENTS, _N_VOLUMES), "f4").T
    nib.Cifti2Image(values, (SeriesAxis(0, 0.8, _N_VOLUMES), axis)).to_filename(series)
    labels, cortex = np.zeros((1, _N_ELEMENTS), "f4"), sum(_CORTEX)
    labels[0, :cortex] = np.arange(cortex) * _N_PARCELS // cortex + 1
    table = {0: ("???", (0, 0, 0, 0)), **{one: (f"parcel {one}", (0, 0, 0, 1)) for one in range(1, 401)}}
    nib.Cifti2Image(labels, (LabelAxis(["parcels"], [table]), axis)).to_filename(atlas)
    return series, atlas


def _axis() -> Any:
    """Two hemispheres without their medial walls, and voxels of 19 structures."""
    from nibabel.cifti2 import BrainModelAxis

    rng = np.random.default_rng(1)
    sides = zip(("CortexLeft", "CortexRight"), _CORTEX, strict=True)
    parts = [
        BrainModelAxis.from_surface(np.sort(rng.permutation(_VERTICES)[:count]), _VERTICES, side)
        for side, count in sides
    ]
    voxels = np.sort(rng.permutation(np.prod(_BOX))[: _N_ELEMENTS - sum(_CORTEX)])
    inside = np.zeros(_BOX, bool)
    inside.reshape(-1)[voxels] = True
    parts.append(BrainModelAxis.from_mask(inside, "BrainStem", np.diag([-2.0, 2, 2, 1])))
    return parts[0] + parts[1] + parts[2]


def _timed(series: Path, atlas: Path, repeats: int) -> list[report.Row]:
    from sharedmask import Regions, SharedImage, extract
    from sharedmask.sources.opening import open_source

    with SharedImage(series, store="shm") as image:
        regions = Regions.from_labels(atlas, image.space)
        held = image.load().array
        out = np.empty((len(regions.indices), _N_VOLUMES), held.dtype)
        forget = partial(_forget, series)
        contenders = [
            Contender("read, cold", lambda: _read(series), before=forget),
            Contender("extract, cold", lambda: extract(series, regions, strategy="mean"), before=forget),
            Contender("copy of the rows", lambda: np.take(held, regions.indices, 0, out, "clip")),
            Contender("reduce, held", lambda: image.reduce(regions)),
        ]
        open_source(series)
        take_turns(contenders, repeats, times := Times())
    return [
        _row("400 parcels of a cold file, beside reading it", times, "extract, cold", "read, cold", _COLD),
        _row("400 parcels of a held one, beside a copy", times, "reduce, held", "copy of the rows", _HELD),
    ]


def _row(what: str, times: Times, ours: str, other: str, bar: report.Bar) -> report.Row:
    ratio = times.ratio(ours, other)
    return report.Row("ELEMENTS", what, times.median(ours), times.median(other), ratio=ratio, bar=bar)


def _read(path: Path) -> int:
    done, piece = 0, bytearray(_PIECE)
    with open(path, "rb", buffering=0) as file:
        while got := file.readinto(piece):
            done += got
    return done


def _forget(path: Path) -> None:
    """Have the next reading of a file read the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _first_calls(series: Path, atlas: Path, repeats: int) -> list[report.Row]:
    found: dict[str, list[list[float]]] = {"ours": [], "loop": []}
    for _ in range(repeats):
        for name, code in (("ours", _OURS), ("loop", _LOOP)):
            found[name].append(_child(code, series, atlas))
    ours, loop = (np.median(found[name], axis=0) for name in ("ours", "loop"))
    ratio = float(np.median([b[0] / a[0] for a, b in zip(found["ours"], found["loop"], strict=True)]))
    wrong = bool(abs(ours[2] - loop[2]) > 1e-3 * max(abs(loop[2]), 1))
    what = "first call, beside nibabel and a loop over labels"
    seconds = report.Row("ELEMENTS", f"{what}: time", ours[0], loop[0], ratio=ratio, bar=_FIRST, wrong=wrong)
    grown = report.Row(
        "ELEMENTS", f"{what}: memory", ours[1] / 1e6, loop[1] / 1e6, "MB", ours[1] / loop[1], _SMALL
    )
    return [seconds, grown]


def _one_region(series: Path) -> report.Row:
    _forget(series)
    read, held = _child(_REGION, series)
    what = "bytes that a region of a mapped series reads"
    return report.Row("ELEMENTS", what, read / 1e6, held / 1e6, "MB", read / held, _BYTES)


def _child(code: str, *paths: Path) -> list[float]:
    done = subprocess.run([sys.executable, "-c", code, *map(str, paths)], stdout=subprocess.PIPE, check=True)
    found: list[float] = json.loads(done.stdout)
    return found
