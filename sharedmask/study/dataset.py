"""A study: every run of a BIDS data set, every atlas, one pass each.

Covers: what is extracted from which run, where outputs and failures are recorded, the study's
page. Does not cover: finding runs (``bids``), file names (``derivatives``), what runs at the same
time (``cohort``), options and exit codes (``base``).

Below the outputs, ``.sharedmask/`` holds what a later pass needs: the journal of complete runs,
one file per run that failed, and what the study's page says of the last pass.
"""

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sharedmask.compute.journal import PRIVATE, Entry, Failures, Journal
from sharedmask.compute.progress import Progress
from sharedmask.errors import ParameterError
from sharedmask.regions.coverage import Coverage
from sharedmask.regions.regions import Regions
from sharedmask.sources.grid import Grid, per_grid
from sharedmask.sources.source import Source, open_source
from sharedmask.study.bids import Atlas, Run, find_runs
from sharedmask.study.cohort import Study, extract_many
from sharedmask.study.derivatives import Derivatives
from sharedmask.study.report import RunReport, RunRow, StudyReport, Timeline
from sharedmask.system import usage
from sharedmask.system.budget import MemoryBudget
from sharedmask.system.files import atomic_write
from sharedmask.system.monitor import MemoryMonitor
from sharedmask.typing import Array

_LAST = "last.json"
_IGNORED = "*.html\n*_timeseries.*\n*_stat-coverage_bold.tsv\n"
_PICTURED_VOLUMES = 10
STRATEGIES = ("simple", "scrubbing", "compcor", "ica_aroma")


@dataclass(frozen=True)
class Outputs:
    """What is written for each run.

    Parameters
    ----------
    statistic : str
        As for :func:`sharedmask.extract`.
    min_coverage : float
        Regions with a smaller share of their voxels inside the brain mask get ``n/a``.
    form : {"tsv", "parquet"}
        Of the regions' signals.
    voxels : bool
        Write the series of all voxels of each region, as HDF5, instead of one value per region.
    reports : bool
        Write a page per run.
    """

    statistic: str = "mean"
    min_coverage: float = 0.5
    form: str = "tsv"
    voxels: bool = False
    reports: bool = True


def analyse(
    dataset: str | Path,
    output: str | Path,
    atlases: Sequence[Atlas],
    outputs: Outputs | None = None,
    *,
    filters: Mapping[str, Any] | None = None,
    denoise_strategy: str | None = None,
    overwrite: bool = False,
    stop_on_first_crash: bool = False,
    shard: str | None = None,
    executor: Executor | None = None,
    n_jobs: int | None = None,
    memory_limit: int | float | str | None = None,
    progress: Progress = None,
    **cleaning: Any,
) -> Study:
    """Extract the regions of all atlases from all runs of a data set.

    Parameters
    ----------
    dataset, output : str or path
        Derivatives of a preprocessing pipeline, and where ours go.
    atlases : sequence of Atlas
        All are taken in one pass over each run; resampled to it, nearest neighbour, if need be.
    outputs : Outputs, optional
    filters : mapping, optional
        See :func:`sharedmask.study.bids.find_runs`.
    denoise_strategy : {"simple", "scrubbing", "compcor", "ica_aroma"}, optional
        Regress out confounds, by nilearn's ``load_confounds_strategy``.
    overwrite : bool
        Do runs again that are complete with the same inputs and parameters.
    stop_on_first_crash : bool
        Raise the first error; by default it ends its run only.
    shard, executor, n_jobs, memory_limit, progress, **cleaning
        See :func:`sharedmask.extract_many`.

    Returns
    -------
    Study
        Its ``errors`` hold the runs that failed; each also has a file in ``.sharedmask/failed``.
    """
    if not atlases:
        raise ParameterError("no atlas is given")
    runs = {_key(run): run for run in find_runs(dataset, filters)}
    derivatives = Derivatives.create(output, dataset)
    # What workers elsewhere hold cannot be seen from here.
    watch = MemoryMonitor() if executor is None else None
    limit = usage.of_tree().held + MemoryBudget.here(memory_limit).limit
    work = _Work(
        derivatives, runs, tuple(atlases), outputs or Outputs(), cleaning, stop_on_first_crash, watch, limit
    )
    work.begin()
    with watch or contextlib.nullcontext():
        study = extract_many(
            {key: run.bold for key, run in runs.items()},
            work.regions,
            strategy=None if work.outputs.voxels else work.outputs.statistic,
            on_result=work.keep,
            on_error=work.fail,
            resume=work.private / "complete.jsonl",
            overwrite=overwrite,
            variant=repr((work.outputs, work.atlases, work.desc)),
            shard=shard,
            executor=executor,
            n_jobs=n_jobs,
            memory_limit=memory_limit,
            progress=progress,
            **_confounds(runs, denoise_strategy),
            **cleaning,
        )
    work.end()
    if shard is None:
        summarise(output)
    return study


def _key(run: Run) -> str:
    return str(run.name.replace(extension=""))


def _confounds(runs: Mapping[str, Run], strategy: str | None) -> dict[str, Any]:
    """Confounds and kept volumes of each run, as nilearn chooses them."""
    if strategy is None:
        return {}
    from nilearn.interfaces.fmriprep import load_confounds_strategy

    loaded = {key: load_confounds_strategy(str(run.bold), strategy) for key, run in runs.items()}
    return {
        "confounds": {key: confounds for key, (confounds, _) in loaded.items()},
        "sample_mask": {key: kept for key, (_, kept) in loaded.items()},
    }


@dataclass
class _Work:
    """What happens to each run's result."""

    derivatives: Derivatives
    runs: Mapping[str, Run]
    atlases: tuple[Atlas, ...]
    outputs: Outputs
    cleaning: Mapping[str, Any]
    stop: bool
    watch: MemoryMonitor | None
    limit: int
    """Of all that is held meanwhile; bytes."""
    _started: float = field(default_factory=time.time)
    _begun: dict[str, float] = field(default_factory=dict)
    """When work on each run began."""

    @cached_property
    def private(self) -> Path:
        return self.derivatives.root / PRIVATE

    @property
    def failures(self) -> Failures:
        return Failures(self.private / "failed")

    @property
    def desc(self) -> str | None:
        """What the names say was done to the signals."""
        return "cleaned" if any(value not in (None, False) for value in self.cleaning.values()) else None

    def begin(self) -> None:
        self.private.mkdir(exist_ok=True)
        (self.derivatives.root / ".bidsignore").write_text(_IGNORED, encoding="utf-8")

    def end(self) -> None:
        """Keep what the study's page says of this pass."""
        said = {"parameters": self._asked(), "timeline": asdict(self._timeline(self._started))}
        with atomic_write(self.private / _LAST) as temporary:
            temporary.write_text(json.dumps(said, default=str), encoding="utf-8")

    def _timeline(self, begun: float) -> Timeline:
        """Memory since then; empty if it was not watched."""
        if self.watch is None:
            return Timeline([], [])
        self.watch.sample()
        samples = [sample for sample in list(self.watch.samples) if sample.time >= begun]
        seconds = [round(sample.time - begun, 2) for sample in samples]
        return Timeline(seconds, [sample.held for sample in samples], self.limit)

    def regions(self, key: str) -> Regions:
        """What is extracted from a run."""
        self._begun[key] = time.time() if self.watch is None else self.watch.sample().time
        return self._coverage(key)[1].regions

    def _coverage(self, key: str) -> tuple[Source, Coverage]:
        # Made again when the result is there: kept, it would add up over a thousand runs.
        run = self.runs[key]
        source = open_source(run.bold)
        grid = source.grid
        brain = None if run.mask is None else Regions.from_any(str(run.mask), grid).union
        return source, Coverage.of(self._atlases_on(grid), brain, self.outputs.min_coverage)

    @cached_property
    def _atlases_on(self) -> Callable[[Grid], list[Regions]]:
        def read(grid: Grid) -> list[Regions]:
            return [
                Regions.from_labels(atlas.image, grid, lut=atlas.lut, resampling_target="data")
                for atlas in self.atlases
            ]

        return per_grid(read)

    def keep(self, key: str, signals: Any) -> list[Path]:
        """Write a run's outputs; what they are is recorded as complete."""
        source, coverage = self._coverage(key)
        run = self.runs[key]
        if self.outputs.voxels:
            written = self._write_voxels(run, coverage, signals)
        else:
            written = self._write_signals(run, coverage, signals)
            if self.outputs.reports:
                written.append(self._report(key, run, source, coverage, signals))
        self.failures.remove(key)
        return written

    def _write_signals(self, run: Run, coverage: Coverage, signals: Array) -> list[Path]:
        every = zip(self.atlases, coverage.split(signals), coverage.tables, strict=True)
        return [
            self.derivatives.write_signals(
                run,
                atlas,
                self.outputs.statistic,
                columns,
                table,
                desc=self.desc,
                facts=self._facts(),
                form=self.outputs.form,
            )
            for atlas, columns, table in every
        ]

    def _write_voxels(self, run: Run, coverage: Coverage, signals: Sequence[Array]) -> list[Path]:
        parts = coverage.share(signals)
        every = zip(self.atlases, parts, strict=True)
        return [self.derivatives.write_voxels(run, atlas, series, desc=self.desc) for atlas, series in every]

    def _facts(self) -> dict[str, Any]:
        if self.desc is None:
            return {}
        asked = {name: value for name, value in self.cleaning.items() if value not in (None, False)}
        return {"SoftwareFilters": {"nilearn.signal.clean": asked}}

    def _report(self, key: str, run: Run, source: Source, coverage: Coverage, signals: Array) -> Path:
        path = self.derivatives.root / f"{key}.html"
        table = [row for rows in coverage.tables for row in rows]
        picture, line = _picture(run, source), self._timeline(self._begun.pop(key))
        RunReport(key, source, coverage.regions, signals, table, picture, self._asked(), line).write(path)
        return path

    def _asked(self) -> dict[str, Any]:
        return {**vars(self.outputs), **self.cleaning, "atlases": ", ".join(a.name for a in self.atlases)}

    def fail(self, key: str, error: Exception) -> None:
        self._begun.pop(key, None)
        self.failures.add(key, error)
        if self.stop:
            raise error


def _picture(run: Run, source: Source) -> Array:
    """The reference image beside the run, else the mean of its first volumes."""
    reference = run.bold.with_name(str(run.name.replace(desc=None, suffix="boldref")))
    if reference.is_file():
        found = open_source(reference)
        if found.shape[:3] == source.shape[:3]:
            return found.read().reshape(source.shape[:3])
    volume, total = np.empty(source.n_voxels, source.dtype), np.zeros(source.n_voxels)
    count = min(_PICTURED_VOLUMES, source.n_timepoints)
    with source.volumes() as reader:
        for _ in range(count):
            reader.readinto(volume)
            total += volume
    return (total / count * source.slope + source.inter).reshape(source.shape[:3], order="F")


def summarise(output: str | Path) -> Path:
    """Write the study's page: all runs with outputs, all that failed, and how the last pass went.

    Returns
    -------
    Path
        Of ``study.html``.
    """
    root = Path(output).expanduser()
    rows = [RunRow(run, error) for run, error in Failures(root / PRIVATE / "failed").all().items()]
    done = sorted(Journal(root / PRIVATE / "complete.jsonl").entries, key=lambda entry: entry.key)
    rows += [_done_row(root, entry) for entry in done]
    page = root / "study.html"
    StudyReport(root.name, rows, *_last_pass(root)).write(page)
    return page


def _last_pass(root: Path) -> tuple[dict[str, Any], Timeline | None]:
    """Its parameters, and its memory over time."""
    try:
        said = json.loads((root / PRIVATE / _LAST).read_text(encoding="utf-8"))
        return said["parameters"], Timeline(**said["timeline"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}, None


def _done_row(root: Path, entry: Entry) -> RunRow:
    page = f"{entry.key}.html"
    facts = {"files": len(entry.outputs), "seconds": f"{entry.seconds:.1f}"}
    return RunRow(entry.key, facts=facts, page=page if (root / page).is_file() else None)
