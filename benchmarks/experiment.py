"""The experiment: every way to mask one run with many regions, beside the others.

Covers: which ways, in which order, what each is projected to need; skipping, checking. Does not
cover: the ways (``variants``), a process that is watched (``watching``), tables and pictures
(``results``, ``pictures``, ``pages``).

First every way runs once, watched; then those that are not slow run a few times in turns,
undisturbed, which gives their times. What a way returns is compared with the signals of
``np.asanyarray(dataobj)[mask]``; one that returns something else is wrong, and has no time.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from benchmarks import data, inputs, machine, memory, watching
from benchmarks.inputs import Inputs
from benchmarks.results import Folder, Limits, Result
from benchmarks.watching import Task, Timed, VariantError

_SLOW = 30.0  # seconds: from here on the watched run is the only one
_QUICK = {"n_images": 1, "n_regions": 4, "n_jobs": 4}


@dataclass(frozen=True)
class Plan:
    """One way, by the name it has in the report."""

    name: str
    variant: str
    ours: bool = False
    parallel: bool = False
    plain: bool = False
    """Whether it is given the uncompressed run."""
    again: bool = False
    """Whether what an earlier run left on disk is there."""


_NILEARN = [
    Plan("NiftiMasker, single, path", "masker_loop"),
    Plan("NiftiMasker, single, in memory", "masker_loop_memory"),
    Plan("NiftiMasker, parallel, path", "masker_loop", parallel=True),
    Plan("NiftiMasker, parallel, in memory", "masker_loop_memory", parallel=True),
    Plan("numpy, single, path", "indexing_loop"),
    Plan("numpy, single, in memory", "indexing_loop_memory"),
    Plan("numpy, parallel, path", "indexing_loop", parallel=True),
    Plan("numpy, parallel, in memory", "indexing_loop_memory", parallel=True),
    Plan("numpy, parallel, SharedMemory", "shared_array", parallel=True),
]
_BESIDES = [
    Plan("the same in float64 (nilearn's example)", "shared_recipe", parallel=True),
    Plan("one NiftiMasker of the union", "union_masker"),
    Plan("numpy, single, mapped .nii", "numpy_indexing", plain=True),
]
_OURS = [
    Plan("extract", "extract", ours=True),
    Plan("extract, .nii", "extract", ours=True, plain=True),
    Plan("SharedImage, shm", "shm", ours=True, parallel=True),
    Plan("SharedImage, memfd", "memfd", ours=True, parallel=True),
    Plan("SharedImage, disk", "disk", ours=True, parallel=True),
    Plan("SharedImage, disk, found again", "disk", ours=True, parallel=True, again=True),
    Plan("SharedImage, file (.nii)", "file", ours=True, parallel=True, plain=True),
    Plan("NiftiMasker, single, as_nifti()", "masker_loop_shared", ours=True),
    Plan("NiftiMasker, parallel, as_nifti()", "masker_loop_shared", ours=True, parallel=True),
]
_PLANS = _NILEARN + _BESIDES + _OURS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--n-images", type=int, default=10, metavar="N",
                        help="subjects of 168 volumes, concatenated (default: 10)")  # fmt: skip
    parser.add_argument("--n-regions", type=int, default=20, metavar="N", help="masks (default: 20)")
    parser.add_argument(
        "--n-jobs", type=int, default=20, metavar="N", help="of what is parallel (default: 20)"
    )
    parser.add_argument("--image", type=Path, metavar="BOLD", help="this run instead of a generated one")
    parser.add_argument("--masks", metavar="GLOB", help="its masks; the first --n-regions of them are used")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed runs (default: 3)")
    parser.add_argument("--output", type=Path, default=Path("experiment"), metavar="FOLDER",
                        help="for all that is written (default: experiment)")  # fmt: skip
    parser.add_argument("--docs", type=Path, metavar="FOLDER",
                        help="put them into benchmarks.md there, and into README.md beside it")  # fmt: skip
    parser.add_argument("--data", type=Path, default=data.default_folder(), metavar="FOLDER",
                        help="where generated runs are kept (default: %(default)s)")  # fmt: skip
    parser.add_argument("--only", metavar="WORD", help="ways whose names contain it")
    parser.add_argument("--quick", action="store_true", help="1 subject, 4 masks, 4 jobs")


def run(arguments: argparse.Namespace) -> int:
    if (arguments.image is None) != (arguments.masks is None):
        print("--image and --masks belong together", file=sys.stderr)
        return 2
    if arguments.quick:
        arguments = argparse.Namespace(**{**vars(arguments), **_QUICK})
    given = _inputs(arguments)
    facts = {**machine.facts(), "memory_for_the_experiment": machine.room()}
    print(f"{machine.described(facts)}\n{given}", flush=True)
    folder = Folder(arguments.output.resolve())
    plans = [plan for plan in _PLANS if _chosen(plan, arguments.only)]
    results = _Experiment(given, arguments.n_jobs, folder).run(plans, arguments.repeats)
    limits = _limits(given)
    folder.write(results, limits, {"machine": facts, "data": str(given), "command": _command(arguments)})
    if arguments.docs:
        from benchmarks import pages

        pages.show_experiment(arguments.docs.resolve(), folder)
    print(folder.table.read_text())
    return int(any(result.state in ("wrong", "failed") for result in results))


def _inputs(arguments: argparse.Namespace) -> Inputs:
    if arguments.image is None:
        return inputs.generated(arguments.data, arguments.n_images, arguments.n_regions)
    return inputs.given(arguments.data, arguments.image, arguments.masks, arguments.n_regions)


def _chosen(plan: Plan, word: str | None) -> bool:
    return word is None or word.lower() in plan.name.lower()


def _command(arguments: argparse.Namespace) -> str:
    given = f" --image {arguments.image} --masks '{arguments.masks}'" if arguments.image else ""
    numbers = f"--n-images {arguments.n_images} --n-regions {arguments.n_regions} --n-jobs {arguments.n_jobs}"
    return f"python -m benchmarks experiment {numbers}{given}"


def _limits(given: Inputs) -> Limits:
    from benchmarks import floors  # and with it numpy: when no memory is measured any more

    signals = given.signal_bytes(len(given.masks))
    return Limits(
        decompress=floors.seconds_to_decompress(given.run),
        copy=floors.seconds_to_copy(signals),
        image=given.image_bytes,
        signals=signals,
    )


class _Experiment:
    """Runs plans, and remembers what their signals have to be."""

    def __init__(self, given: Inputs, n_jobs: int, folder: Folder) -> None:
        self._given = given
        self._n_jobs = n_jobs
        self._folder = folder
        self._expected: list[str] = []

    def run(self, plans: Sequence[Plan], n_rounds: int) -> list[Result]:
        self._expected = self._reference()
        pairs = [(plan, result) for plan in plans for result in self._watch_as_it_fits(plan)]
        pairs = [(replace(plan, name=result.name), result) for plan, result in pairs]
        return self._timed(pairs, n_rounds)

    def _reference(self) -> list[str]:
        """Digests of what everything is compared with: the mapped run needs the least memory."""
        _tell("what the signals are")
        task = self._task(Plan("", "numpy_indexing", plain=True), 1)
        with _spill_folder(self._folder.path) as spill:
            return watching.timed(task, spill).digests

    def _task(self, plan: Plan, n_jobs: int) -> Task:
        given = self._given
        run = given.plain if plan.plain else given.run
        return Task(plan.variant, run, given.masks, n_jobs, given.shape[3])

    # --- watched ---

    def _watch_as_it_fits(self, plan: Plan) -> Iterator[Result]:
        """What has no room with all jobs runs with as many as there are cores besides."""
        result = self._watch(plan, self._n_jobs if plan.parallel else 1)
        yield result
        cores = len(psutil.Process().cpu_affinity())
        if result.state == "skipped" and plan.parallel and cores < self._n_jobs:
            yield self._watch(replace(plan, name=f"{plan.name}, {cores} jobs"), cores)

    def _watch(self, plan: Plan, n_jobs: int) -> Result:
        projected = memory.COSTS[plan.variant].projected(self._given, n_jobs, len(self._given.masks))
        result = Result(plan.name, n_jobs, plan.ours, projected)
        if (lacking := machine.lacking(projected)) is not None:
            return replace(result, state="skipped", note=lacking)
        _tell(plan.name)
        try:
            with self._prepared(plan, n_jobs) as spill:
                found = watching.watched(self._task(plan, n_jobs), spill, self._folder.dat(plan.name))
        except VariantError as error:
            return replace(result, state="failed", note=str(error))
        return self._checked(result.seen(found), found)

    def _checked(self, result: Result, found: Timed) -> Result:
        if found.digests == self._expected:
            return result
        note = "other signals than numpy's"
        return replace(result, state="wrong", note=note, seconds=None, cpu_seconds=None)

    @contextmanager
    def _prepared(self, plan: Plan, n_jobs: int) -> Iterator[Path]:
        """An empty folder to spill into or, for a run that finds something there, a filled one."""
        with _spill_folder(self._folder.path) as spill:
            if plan.again:
                watching.timed(self._task(plan, n_jobs), spill)
            yield spill

    # --- timed ---

    def _timed(self, pairs: Sequence[tuple[Plan, Result]], n_rounds: int) -> list[Result]:
        runs: dict[str, list[Timed | VariantError]] = {}
        for _ in range(n_rounds):
            for plan, result in pairs:
                if result.state == "ok" and result.seconds is not None and result.seconds < _SLOW:
                    _tell(f"{plan.name}, undisturbed")
                    runs.setdefault(plan.name, []).append(self._time(plan, result.n_jobs))
        return [self._with_times(result, runs.get(plan.name, [])) for plan, result in pairs]

    def _time(self, plan: Plan, n_jobs: int) -> Timed | VariantError:
        try:
            with self._prepared(plan, n_jobs) as spill:
                return watching.timed(self._task(plan, n_jobs), spill)
        except VariantError as error:
            return error

    def _with_times(self, result: Result, runs: list[Timed | VariantError]) -> Result:
        for found in runs:
            if isinstance(found, VariantError):
                return replace(result, state="failed", note=str(found), seconds=None, cpu_seconds=None)
            result = self._checked(result, found)
        if not runs or result.state == "wrong":
            return result
        seconds = statistics.median(found.seconds for found in runs)
        cpu = statistics.median(found.cpu_seconds for found in runs)
        return replace(result, seconds=seconds, cpu_seconds=cpu, n_runs=len(runs))


@contextmanager
def _spill_folder(beside: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=".spill-", dir=beside) as folder:
        yield Path(folder)


def _tell(what: str) -> None:
    print(f"running {what}", file=sys.stderr, flush=True)
