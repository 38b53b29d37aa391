"""``python -m benchmarks frames``: one frame of a long run, all of them, and all folds.

Covers: what is timed and weighed, and what it has to reach. Does not cover: the ways themselves, each
of which runs in a process of its own (``frames_child``).
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks import data
from benchmarks.report import Bar, Row, table

_SHAPE = (72, 86, 72, 600)  # 1.07 GB of float32
_FRAME = 500
_MB = 1e6
_VOLUME_BYTES = 72 * 86 * 72 * 4

_OPENING = {
    "pread": "bare pread and nibabel's header",
    "numpy": "numpy.memmap",
    "dataobj": "nibabel's dataobj[..., i]",
    "eager": "the whole array (as before)",
}
_VISITING = {
    "run.nii auto": "every frame of .nii",
    "run.nii.gz shm": "every frame of .nii.gz (shm)",
    "run.nii.gz disk": "every frame of .nii.gz (disk)",
    "run.h5 auto": "every frame of .h5",
    "packed.h5 disk": "every frame of .h5, compressed (disk)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="processes per way")
    parser.add_argument("--volumes", type=int, default=_SHAPE[3], metavar="N", help="length of the run")
    parser.add_argument("--data", type=Path, default=data.default_folder(), metavar="FOLDER",
                        help="where the generated run is kept (default: %(default)s)")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Print the table; 1 if a bar is missed."""
    folder = arguments.data / f"frames-{arguments.volumes}"
    _child("prepare", folder, *_SHAPE[:3], arguments.volumes)
    frame = min(_FRAME, arguments.volumes - 1)
    rows = _opening(folder / "run.nii", frame, arguments.repeats)
    rows += [_visiting(folder, how, what) for how, what in _VISITING.items()]
    rows += _folds(folder / "run.nii")
    print(table(rows))
    return int(any(row.failed for row in rows))


def _opening(path: Path, frame: int, repeats: int) -> list[Row]:
    found = {way: [_child("open", way, path, frame) for _ in range(repeats)] for way in ("ours", *_OPENING)}

    def median(way: str, what: str) -> float:
        return statistics.median(one[what] for one in found[way])

    peak = {way: median(way, "peak") / _MB for way in found}
    section = f"open a run of {path.stat().st_size / 1e9:.2f} GB and read frame {frame}"
    rows = [
        Row(section, f"time, {what}", median(way, "ours"), median(way, "theirs"), ratio=median(way, "ratio"),
            bar=Bar(3, at_most=True) if way == "pread" else None)
        for way, what in _OPENING.items()
    ]  # fmt: skip
    rows.append(_weighed(section, "memory, at most 16 MB", peak["ours"], 16))
    return rows + [
        Row(section, f"memory, {what}", peak["ours"], peak[way], "MB") for way, what in _OPENING.items()
    ]


def _visiting(folder: Path, how: str, what: str) -> Row:
    name, store = how.split()
    found = _child("visit", folder / name, store)
    section = "peak memory of visiting, all resident pages counted; one volume and 32 MB are allowed"
    note = f"{found['seconds']:.2f} s, {found['anonymous'] / _MB:.0f} MB anonymous"
    return _weighed(section, what, found["peak"] / _MB, (_VOLUME_BYTES + 32 * 2**20) / _MB, note)


def _folds(path: Path) -> list[Row]:
    section = "all leave-one-out training sets at once"
    ours, eager = (_child("folds", way, path)["peak"] / _MB for way in ("ours", "eager"))
    return [Row(section, "memory; before: of one fold only", ours, eager, "MB")]


def _weighed(section: str, what: str, ours: float, allowed: float, note: str = "") -> Row:
    return Row(section, what, ours, allowed, "MB", ours / allowed, Bar(1, at_most=True), note=note)


def _child(*arguments: object) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.frames_child", *map(str, arguments)]
    done = subprocess.run(command, cwd=data.ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found
