"""``python -m benchmarks limits``: what masking costs beside what nothing can be faster than.

Covers: which of ours stands beside which floor. Does not cover: the floors (``floors``), rounds
and ratios (``timing``), what is replaced (``core``, ``experiment``).

All contenders take turns in one run. Where one call takes microseconds, a turn is many calls, and
the figures are of one.
"""

import argparse
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import data, floors, inputs, machine, memory, rapid, report, variants
from benchmarks.inputs import Inputs
from benchmarks.report import Bar, Row
from benchmarks.timing import Contender, Times, take_turns
from sharedmask import Grid, Regions, SharedImage, extract
from sharedmask.storage import segment
from sharedmask.storage.registry import OwnedSegment
from sharedmask.workers import pool

_CALLS = 200
_GEOMETRY = {"rows": ((1000, 250), np.dtype(np.int16))}
_N_WORKERS = 8
_BLOCK_VOLUMES = 24
_CORE = Bar(1.25, at_most=True)
_RESIDENT = Bar(1.5, at_most=True)
_ATTACH = Bar(10, at_most=True)


@dataclass(frozen=True)
class _Pair:
    """Ours and its floor, which may be several things one after the other."""

    what: str
    ours: str
    floor: tuple[str, ...]
    bar: Bar | None = None
    calls: int = 1
    note: str = ""


_PAIRS = [
    _Pair("extract, .nii.gz / decompressing", "extract gz", ("decompress",), _CORE),
    _Pair("extract, .nii / reading", "extract nii", ("read",)),
    _Pair("rapidgzip, one core / isal", "rapidgzip 1", ("decompress",), note="decompressing"),
    _Pair("rapidgzip, all cores / isal", "rapidgzip", ("decompress",), note="decompressing"),
    _Pair("extracting by rapidgzip / extract", "extract, rapidgzip", ("extract gz",), note="on all cores"),
    _Pair("load, .nii.gz / decompressing, then transposing", "load gz", ("decompress", "transpose")),
    _Pair("load, .nii / reading, then transposing", "load nii", ("read", "transpose"), note="on all cores"),
    _Pair("resident masks / copying their signals", "resident", ("copy",), _RESIDENT),
    _Pair("resident masks, all cores / copying", "resident, jobs", ("copy",), _RESIDENT),
    _Pair("  (masks given as Regions)", "resident, Regions", ("copy",)),
    _Pair("attach / open and mmap", "attach", ("open and mmap",), _ATTACH, _CALLS),
    _Pair("publish / write and rename a file", "publish", ("write and rename",), None, _CALLS),
    _Pair("pool round trip / pipe round trip", "pool", ("pipe",), None, _CALLS),
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="rounds (default: 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there, too")
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help="put the table into benchmarks.md there")
    parser.add_argument("--data", type=Path, default=data.default_folder(), metavar="FOLDER",
                        help="where generated runs are kept (default: %(default)s)")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="3 rounds")


def run(arguments: argparse.Namespace) -> int:
    n_rounds = 3 if arguments.quick else arguments.repeats
    given = inputs.of_spec(arguments.data, data.Spec())
    facts = machine.facts()
    print(f"{machine.described(facts)}\n{given}", flush=True)
    rows = [_worker_memory(), *_times(given, n_rounds)]
    print(report.table(rows))
    if arguments.json:
        report.write_json(arguments.json, rows, {"machine": facts, "repeats": n_rounds, "data": str(given)})
    if arguments.docs:
        from benchmarks import pages

        command = f"python -m benchmarks limits --repeats {n_rounds}"
        pages.show_table(arguments.docs.resolve(), "limits", report.table(rows), command, facts, str(given))
    return int(any(row.failed for row in rows))


# --- times ---------------------------------------------------------------------------------------


def _times(given: Inputs, n_rounds: int) -> list[Row]:
    times = Times()
    masks = variants.load_masks(given.masks)
    mapped = variants.load_array(given.plain)
    right = partial(_equal, expected=[mapped[mask].T for mask in masks])
    with ExitStack() as stack:
        contenders = [*_files(given, masks, right), *_in_memory(given, masks, right, stack), *_small(stack)]
        take_turns(contenders, n_rounds, times)
    return [_row(pair, times) for pair in _PAIRS]


def _row(pair: _Pair, times: Times) -> Row:
    section = "LIMITS: medians over rounds"
    if not times.knows(pair.ours, *pair.floor):
        wrong = not times.wrong.isdisjoint((pair.ours, *pair.floor))
        return Row(section, pair.what, bar=pair.bar, wrong=wrong, note=pair.note)
    name = " + ".join(pair.floor)
    times.seconds[name] = [sum(parts) for parts in zip(*(times.seconds[f] for f in pair.floor), strict=True)]
    scale, unit = (1, "s") if pair.calls == 1 else (1e6 / pair.calls, "us")
    ours, floor = times.median(pair.ours) * scale, times.median(name) * scale
    return Row(section, pair.what, ours, floor, unit, times.ratio(pair.ours, name), pair.bar, note=pair.note)


def _files(given: Inputs, masks: list[Any], right: Callable[[Any], bool]) -> list[Contender]:
    return [
        *(_in_parallel(given, masks, right) if rapid.is_installed() else []),
        Contender("decompress", partial(variants.decompress, given.run)),
        Contender("extract gz", partial(extract, given.run, masks), right),
        Contender("read", partial(floors.read, given.plain)),
        Contender("extract nii", partial(extract, given.plain, masks), right),
        Contender("load gz", partial(_load, given.run)),
        Contender("load nii", partial(_load, given.plain)),
    ]


def _in_parallel(given: Inputs, masks: list[Any], right: Callable[[Any], bool]) -> list[Contender]:
    """What decoding on all cores would give."""
    regions = Regions.from_any(masks, Grid(given.shape[:3], np.eye(4)))
    ends = np.cumsum(given.mask_voxels)[:-1]

    def extract_in_parallel() -> list[Any]:
        rows = rapid.extract(given.run, given.shape, regions.indices)
        return [part.T for part in np.split(rows, ends)]

    return [
        Contender("rapidgzip 1", partial(rapid.decompress, given.run, 1)),
        Contender("rapidgzip", partial(rapid.decompress, given.run, rapid.ALL_CORES)),
        Contender("extract, rapidgzip", extract_in_parallel, right),
    ]


def _equal(found: Any, expected: list[Any]) -> bool:
    return len(found) == len(expected) and all(map(np.array_equal, found, expected))


def _load(run: Path) -> None:
    with SharedImage(run) as image:
        image.load()


def _in_memory(
    given: Inputs, masks: list[Any], right: Callable[[Any], bool], stack: ExitStack
) -> list[Contender]:
    image = stack.enter_context(SharedImage(given.run)).load()
    signals = image.mask_parallel(masks)
    n_voxels, n_timepoints = int(np.prod(given.shape[:3])), given.shape[3]
    block = np.ones((_BLOCK_VOLUMES, n_voxels), np.float32)
    turned = np.empty((n_voxels, _BLOCK_VOLUMES), np.float32)

    def transpose() -> None:
        for _ in range(n_timepoints // _BLOCK_VOLUMES):
            floors.transpose(block, turned)

    regions = Regions.from_any(masks, Grid(image.shape[:3], image.affine))
    return [
        Contender("transpose", transpose),
        Contender("copy", partial(variants.copies, signals)),
        Contender("resident", partial(image.mask_parallel, masks), right),
        Contender("resident, jobs", partial(image.mask_parallel, masks, n_jobs=-1), right),
        Contender("resident, Regions", partial(image.mask_parallel, regions), right),
    ]


def _small(stack: ExitStack) -> list[Contender]:
    """Attaching, publishing, asking a worker."""
    image = stack.enter_context(SharedImage(_little_image())).load()
    owned = OwnedSegment("benchmark", _GEOMETRY)
    stack.callback(owned.release)
    handle = owned.share({})  # attached by nobody: attaching to what is attached costs nothing
    folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
    echo = stack.enter_context(_echo())
    return [
        _many("attach", partial(segment.attach, handle)),
        _many("open and mmap", partial(_open_and_map, handle)),
        _many("publish", partial(image.publish, f"benchmark-{os.getpid()}")),
        _many("write and rename", partial(_write_and_rename, Path(folder), image.handle.to_json())),
        _many("pool", partial(pool.run_processes, os.getpid, (), [()], 1)),
        _many("pipe", echo),
    ]


def _many(name: str, call: Callable[[], Any]) -> Contender:
    def run() -> None:
        for _ in range(_CALLS):
            call()

    return Contender(name, run)


def _little_image() -> Any:
    import nibabel as nib

    return nib.Nifti1Image(np.ones((8, 8, 8, 50), np.float32), np.eye(4))


def _open_and_map(handle: segment.Handle) -> None:
    fd = os.open(f"/dev/shm/{handle.name}", os.O_RDONLY)
    mmap.mmap(fd, handle.nbytes, prot=mmap.PROT_READ).close()
    os.close(fd)


def _write_and_rename(folder: Path, text: str) -> None:
    partial_ = folder / ".partial"
    partial_.write_text(text)
    os.replace(partial_, folder / "whole")


@contextmanager
def _echo() -> Iterator[Callable[[], Any]]:
    """A call that sends a word to a process and waits for it to come back."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs,), daemon=True)
    process.start()

    def call() -> Any:
        ours.send("item")
        return ours.recv()

    try:
        yield call
    finally:
        ours.send(None)
        process.join()


def _answer(pipe: Any) -> None:
    while (word := pipe.recv()) is not None:
        pipe.send(word)


# --- memory --------------------------------------------------------------------------------------


def _worker_memory() -> Row:
    """Of one worker more, beside that of one process more of a fork server with numpy."""
    ours, floor = _of_workers() / 1e6, _of_forks() / 1e6
    note = f"of {_N_WORKERS} processes beside 1; PSS"
    return Row("LIMITS: memory", "worker / fork of numpy", ours, floor, "MB", ours / floor, note=note)


def _of_workers() -> float:
    def start(count: int) -> None:
        pool.run_processes(os.getpid, (), [()] * count, count)

    try:
        return _more(start)
    finally:
        pool.shutdown()


def _of_forks() -> float:
    context = get_context("forkserver")
    context.set_forkserver_preload(["numpy", "benchmarks.limits"])
    processes: list[Any] = []

    def start(count: int) -> None:
        while len(processes) < count:
            ours, theirs = context.Pipe()
            process = context.Process(target=_answer, args=(theirs,), daemon=True)
            process.start()
            ours.send("item")
            ours.recv()
            processes.append((ours, process))

    try:
        return _more(start)
    finally:
        for pipe, process in processes:
            pipe.send(None)
            process.join()


def _more(start: Callable[[int], None]) -> float:
    """Bytes per process from the first to the last."""
    start(1)
    one = memory.look(os.getpid())[0]
    start(_N_WORKERS)
    return (memory.look(os.getpid())[0] - one) / (_N_WORKERS - 1)
