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
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sharedmask.compute.connectivity import checked_kinds
from sharedmask.compute.journal import PRIVATE, Entry, Failures, Journal
from sharedmask.compute.progress import Progress
from sharedmask.errors import ParameterError, SharedMaskWarning
from sharedmask.records import dataclass
from sharedmask.regions.regions import Regions
from sharedmask.sources.opening import open_source
from sharedmask.sources.source import Source
from sharedmask.study import report
from sharedmask.study.analysis import Analysis, Outputs
from sharedmask.study.atlases import Atlas
from sharedmask.study.bids import Run, find_runs, find_strays
from sharedmask.study.cohort import Study, extract_many, shard_of
from sharedmask.study.denoising import SMOOTH_AROMA, Denoise, Denoising
from sharedmask.study.derivatives import Derivatives
from sharedmask.study.manifest import Manifest, clashes
from sharedmask.study.report import RunReport, RunRow, StudyReport, Timeline
from sharedmask.system import inputs, usage
from sharedmask.system.budget import MemoryBudget
from sharedmask.system.files import atomic_write
from sharedmask.system.monitor import MemoryMonitor
from sharedmask.system.process import cached_property
from sharedmask.typing import Array

_LAST = "last.json"
_IGNORED = "*.html\ngroup_*\n*_timeseries.*\n*_relmat.*\n*_outliers.*\n*_stat-coverage_bold.tsv\n"
_PICTURED_VOLUMES = 10


def analyse(
    dataset: str | Path,
    output: str | Path,
    atlases: Sequence[Atlas],
    outputs: Outputs | None = None,
    *,
    filters: Mapping[str, Any] | None = None,
    denoise_strategy: str | Sequence[str] | Denoise | None = None,
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
    denoise_strategy : str, sequence of str, or Denoise, optional
        Regress out confounds and leave out volumes: the first parameter of :class:`Denoise`, or all of them.
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
    study = _Survey.of(dataset, output, atlases, outputs, denoise_strategy, filters, cleaning)
    if study.analysis.outputs.reports:
        report.check_installed()
    # What workers elsewhere hold cannot be seen from here.
    watch = MemoryMonitor() if executor is None else None
    limit = usage.of_tree().held + MemoryBudget.here(memory_limit).limit
    work = _Work(study, stop_on_first_crash, watch, limit)
    work.begin()
    with watch or contextlib.nullcontext():
        done = extract_many(
            {key: run.bold for key, run in study.runs.items()},
            work.regions,
            strategy=study.analysis.outputs.statistics or None,
            on_result=work.keep,
            on_error=work.fail,
            resume=work.private / "complete.jsonl",
            overwrite=overwrite,
            variant=work.variant,
            shard=shard,
            executor=executor,
            n_jobs=n_jobs,
            memory_limit=memory_limit,
            progress=progress,
            **work.own_parameters(),
            **{name: value for name, value in cleaning.items() if name != "t_r"},
        )
    work.end()
    if shard is None:
        _show(output)
    return done


def _show(output: str | Path) -> None:
    """Write the study's page, if it can be written."""
    if lacking := report.missing():
        said = f"study.html is not written: it needs {' and '.join(lacking)}"
        warnings.warn(said, SharedMaskWarning, stacklevel=3)
    else:
        summarise(output)


def draw_manifests(
    dataset: str | Path,
    output: str | Path,
    atlases: Sequence[Atlas],
    outputs: Outputs | None = None,
    *,
    filters: Mapping[str, Any] | None = None,
    denoise_strategy: str | Sequence[str] | Denoise | None = None,
    shard: str | None = None,
    **cleaning: Any,
) -> Iterator[Manifest]:
    """What :func:`analyse` would read and write for each run, and what is wrong; writes nothing.

    Parameters are those of :func:`analyse`.
    """
    study = _Survey.of(dataset, output, atlases, outputs, denoise_strategy, filters, cleaning)
    for key in shard_of(list(study.runs), shard):
        yield study.manifest(key)


@dataclass(frozen=True)
class _Survey:
    """What is asked of which runs of which data set."""

    analysis: Analysis
    derivatives: Derivatives
    runs: Mapping[str, Run]
    clashes: Mapping[Path, str]
    notes: tuple[str, ...]
    """Of the study as a whole."""

    @classmethod
    def of(
        cls,
        dataset: str | Path,
        output: str | Path,
        atlases: Sequence[Atlas],
        outputs: Outputs | None,
        strategy: str | Sequence[str] | Denoise | None,
        filters: Mapping[str, Any] | None,
        cleaning: Mapping[str, Any],
    ) -> "_Survey":
        denoise = Denoise.of(strategy)
        analysis = Analysis(tuple(atlases), outputs or Outputs(), denoise, cleaning)
        analysis.check()
        if denoise is not None and denoise.wants_smooth_aroma:
            filters = {"desc": SMOOTH_AROMA, **(filters or {})}
        derivatives = Derivatives.at(output, dataset)
        runs = find_runs(dataset, filters)
        planned = {run.bold: derivatives.planned(run, analysis) for run in runs}
        found = clashes(planned)
        # Of two that would be written to the same files neither is; each goes by its file's name.
        keys = {run.bold.name if run.bold in found else analysis.key(run): run for run in runs}
        strays = find_strays(dataset).values()
        notes = (*analysis.notes, *(f"left out: {why}" for why in strays))
        study = cls(analysis, derivatives, keys, found, notes)
        for note in notes:
            warnings.warn(note, SharedMaskWarning, stacklevel=4)
        return study

    @property
    def variant(self) -> str:
        """What outputs depend on besides the images, their regions and parameters."""
        names = [(atlas.entities, atlas.lut is not None) for atlas in self.analysis.atlases]
        return repr((self.analysis.outputs, names, self.analysis.steps))

    def manifest(self, key: str) -> Manifest:
        run = self.runs[key]
        drawn = Manifest.draw(run, self.analysis, self.derivatives)
        if run.bold in self.clashes:
            drawn.problems.insert(0, ParameterError(self.clashes[run.bold]))
        return drawn


@dataclass
class _Work:
    """What happens to each run's result."""

    study: _Survey
    stop: bool
    watch: MemoryMonitor | None
    limit: int
    """Of all that is held meanwhile; bytes."""
    _started: float = field(default_factory=time.time)
    _begun: dict[str, tuple[float, Manifest]] = field(default_factory=dict)
    """When work on each run began, and what was known of it then."""

    @cached_property
    def private(self) -> Path:
        return self.study.derivatives.root / PRIVATE

    @property
    def failures(self) -> Failures:
        return Failures(self.private / "failed")

    def begin(self) -> None:
        Derivatives.create(self.study.derivatives.root, self.study.derivatives.source)
        self.private.mkdir(exist_ok=True)
        with atomic_write(self.study.derivatives.root / ".bidsignore") as temporary:
            temporary.write_text(_IGNORED, encoding="utf-8")

    def end(self) -> None:
        """Keep what the study's page says of this pass."""
        said = {
            "parameters": self._asked(),
            "notes": self.study.notes,
            "timeline": asdict(self._timeline(self._started)),
        }
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
        """What is extracted from a run, after all that can be known of it before is known."""
        coverage = self._known(key).coverage
        assert coverage is not None
        return coverage.regions

    def _known(self, key: str) -> Manifest:
        """A run's manifest, drawn when it is first asked for, and again when it is prepared again.

        Its problems are raised.
        """
        if key not in self._begun or self._begun[key][1].coverage is None:
            begun = time.time() if self.watch is None else self.watch.sample().time
            manifest = self.study.manifest(key)
            manifest.check()
            self._begun[key] = begun, manifest
            for note in manifest.notes:
                warnings.warn(f"{key}: {note}", SharedMaskWarning, stacklevel=2)
        return self._begun[key][1]

    def variant(self, key: str) -> str:
        """What a run's outputs depend on besides its image, the regions and the parameters."""
        manifest = self._known(key)
        self._begun[key] = self._begun[key][0], manifest.slim()  # the last that is asked before the work
        return f"{self.study.variant} {manifest.facts()}"

    def own_parameters(self) -> dict[str, Any]:
        """Functions of a run's key that give the parameters of this run alone."""
        own: dict[str, Callable[[str], Any]] = {"t_r": lambda key: self._known(key).t_r}
        if self.study.analysis.denoise is not None:
            own["confounds"] = lambda key: self._denoising(key).confounds
            own["sample_mask"] = lambda key: self._denoising(key).sample_mask
        return own

    def _denoising(self, key: str) -> Denoising:
        found = self._known(key).denoising
        assert found is not None
        return found

    def keep(self, key: str, signals: Any) -> list[Path]:
        """Write a run's outputs; what they are is recorded as complete."""
        begun, known = self._begun.pop(key)
        manifest = known.with_coverage()
        write = self._write_voxels if self.study.analysis.outputs.voxels else self._write_signals
        written = [*self._write_outliers(manifest), *write(manifest, signals)]
        if self.study.derivatives.page(known.run, self.study.analysis) in manifest.written:
            written.append(self._report(key, manifest, next(iter(signals.values())), begun))
        self.failures.remove(key)
        return written

    def _write_outliers(self, manifest: Manifest) -> list[Path]:
        if (denoising := manifest.denoising) is None:
            return []
        run, desc = manifest.run, self.study.analysis.desc(manifest.run)
        kept, n_timepoints = denoising.kept, denoising.n_timepoints
        return [self.study.derivatives.write_outliers(run, kept, n_timepoints, desc=desc)]

    def _write_signals(self, manifest: Manifest, signals: Mapping[str, Array]) -> list[Path]:
        run, analysis, coverage = manifest.run, self.study.analysis, manifest.coverage
        assert coverage is not None
        every = [
            (statistic, *part)
            for statistic, values in signals.items()
            for part in zip(
                analysis.atlases, coverage.split(np.atleast_2d(values)), coverage.tables, strict=True
            )
        ]
        outputs, written = analysis.outputs, list[Path]()
        told: dict[str, Any] = {
            "desc": analysis.desc(run), "facts": manifest.facts(), "drop_empty": outputs.drop_empty
        }  # fmt: skip
        for statistic, atlas, columns, table in every:
            of = run, atlas, statistic, columns, table
            written += [
                self.study.derivatives.write_matrix(*of, kind, fisher_z=outputs.fisher_z, **told)
                for kind in checked_kinds(outputs.connectivity)
            ]
            written.append(self.study.derivatives.write_signals(*of, form=outputs.form, **told))
        return written

    def _write_voxels(self, manifest: Manifest, signals: Sequence[Array]) -> list[Path]:
        run, analysis, coverage = manifest.run, self.study.analysis, manifest.coverage
        assert coverage is not None
        parts = coverage.share([np.atleast_2d(series) for series in signals])
        desc, facts = analysis.desc(run), manifest.facts()
        return [
            self.study.derivatives.write_voxels(run, atlas, series, desc=desc, facts=facts)
            for atlas, series in zip(analysis.atlases, parts, strict=True)
        ]

    def _report(self, key: str, manifest: Manifest, signals: Array, begun: float) -> Path:
        source, coverage = manifest.source, manifest.coverage
        assert source is not None and coverage is not None
        path = self.study.derivatives.page(manifest.run, self.study.analysis)
        table = [row for rows in coverage.tables for row in rows]
        picture, line = _picture(manifest.run, source), self._timeline(begun)
        facts = replace(source, t_r=manifest.t_r)
        RunReport(
            key, facts, coverage.regions, signals, table, picture, self._asked(), line, manifest.table()
        ).write(path)
        return path

    def _asked(self) -> dict[str, Any]:
        analysis = self.study.analysis
        atlases = ", ".join(atlas.entities["atlas"] for atlas in analysis.atlases)
        asked = {**vars(analysis.outputs), **analysis.cleaning, "atlases": atlases}
        return asked | ({"denoise_strategy": str(analysis.denoise)} if analysis.denoise else {})

    def fail(self, key: str, error: Exception) -> None:
        self._begun.pop(key, None)
        self.failures.add(key, error)
        if self.stop:
            raise error


def _picture(run: Run, source: Source) -> Array:
    """The reference image beside the run, else the mean of its first volumes."""
    if run.reference is not None:
        found = open_source(run.reference)
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


def _last_pass(root: Path) -> tuple[dict[str, Any], Timeline | None, list[str]]:
    """Its parameters, its memory over time, and what was said of the study."""
    try:
        said = inputs.read_json(root / PRIVATE / _LAST)
        return said["parameters"], Timeline(**said["timeline"]), said.get("notes", [])
    except (OSError, ValueError, KeyError, TypeError):
        return {}, None, []


def _done_row(root: Path, entry: Entry) -> RunRow:
    page = f"{entry.key}.html"
    facts = {"files": len(entry.outputs), "seconds": f"{entry.seconds:.1f}"}
    return RunRow(entry.key, facts=facts | _told(entry), page=page if (root / page).is_file() else None)


def _told(entry: Entry) -> dict[str, Any]:
    """What the sidecar of a run's first table says was read."""
    tables = (Path(path) for path in entry.outputs if "_timeseries." in path)
    try:
        said = inputs.read_json(next(tables).with_suffix(".json"))
    except (OSError, ValueError, StopIteration):
        return {}
    return {
        "space": said.get("Space", ""),
        "TR (s)": said.get("RepetitionTime", "not known"),
        "mask": "found" if said.get("BrainMask") else "not found",
        "volumes kept": f"{len(said['KeptVolumes'])} of {said['NumberOfVolumes']}"
        if "KeptVolumes" in said
        else "all",
        "notes": "; ".join(said.get("Notes", [])),
    }
