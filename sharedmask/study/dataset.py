"""A study: every run of a BIDS data set, every atlas, one pass each.

Covers: what is extracted from which run, where outputs and failures are recorded. Does not cover: finding
runs (``bids``), file names (``derivatives``), what runs at the same time (``cohort``), what all runs
come to (``summary``), options and exit codes (``cli.base``).

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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sharedmask.compute.cleaning import is_cleaning
from sharedmask.compute.journal import JOURNAL, PRIVATE, Failures
from sharedmask.compute.progress import Progress
from sharedmask.errors import SharedMaskWarning
from sharedmask.records import dataclass
from sharedmask.regions.regions import Regions
from sharedmask.reports import carpet, figures, pages
from sharedmask.reports.pages import Parcels, RunReport, Timeline
from sharedmask.reports.quality import Quality, as_texts
from sharedmask.sources.source import Source
from sharedmask.study.analysis import Findable, Findings, Matrices, Outputs
from sharedmask.study.atlases import Atlas
from sharedmask.study.cohort import extract_many, shard_of
from sharedmask.study.completion import Resumption
from sharedmask.study.denoising import Denoise, Denoising
from sharedmask.study.derivatives import Derivatives
from sharedmask.study.executors import elsewhere, preloaded
from sharedmask.study.manifest import Load, Manifest, Survey
from sharedmask.study.summary import LAST, summarise, thumbnail_of, write_quality
from sharedmask.study.tasks import Apart, Study
from sharedmask.system import usage
from sharedmask.system.budget import MemoryBudget
from sharedmask.system.files import atomic_write, write_text
from sharedmask.system.monitor import MemoryMonitor
from sharedmask.system.process import cached_property
from sharedmask.system.together import Together
from sharedmask.typing import Array, Numbers
from sharedmask.workers import pool

_IGNORED = "*.html\ngroup_*\n*_timeseries.*\n*_relmat.*\n*_outliers.*\n*_stat-coverage_*\n*_qc.*\n"
_SECONDS = 0.5  # from one look at the memory of all processes to the next


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

    ``dataset``, ``output``: derivatives of a preprocessing pipeline, and where ours go.
    ``atlases``: all are taken in one pass over each run; resampled to it, nearest neighbour, if need be.
    ``filters``: see :func:`sharedmask.study.bids.find_runs`.
    ``denoise_strategy``: regress out confounds and leave out volumes: the first parameter of
    :class:`Denoise`, or all of them.
    ``overwrite``: do runs again that are complete with the same inputs and parameters.
    ``stop_on_first_crash``: raise the first error; by default it ends its run only.
    ``shard``, ``executor``, ``n_jobs``, ``memory_limit``, ``progress``, **cleaning: see
    :func:`sharedmask.extract_many`.

    The study's ``errors`` hold the runs that failed; each also has a file in ``.sharedmask/failed``.
    """
    study = Survey.of(dataset, output, atlases, outputs, denoise_strategy, filters, cleaning)
    if shown := study.analysis.outputs.reports:
        pages.check_installed()
    # What workers elsewhere hold cannot be seen from here.
    watch = MemoryMonitor(interval=_SECONDS, operations=False) if executor is None else None
    limit = usage.of_tree().held + MemoryBudget.here(memory_limit).limit
    cleans = is_cleaning(cleaning) or study.analysis.denoise is not None
    preload = preloaded(cleans, bool(study.analysis.outputs.connectivity))
    load = Denoise.load if executor else elsewhere(n_jobs, preload, Denoise.load)
    work = _Work(study, stop_on_first_crash, watch, limit, load)
    work.begin()
    # A page shows the memory of all processes, which workers do not see.
    alone = study.travels and not (shown or executor)
    bare = replace(study, analysis=replace(study.analysis), paths={}, clashes={}, notes=())
    some = partial(_extract_some, bare, memory_limit)
    apart = Apart.of(study.is_alone, study.paths, some) if alone else None
    with watch or contextlib.nullcontext():
        done = work.extract(
            on_error=work.fail,
            overwrite=overwrite,
            shard=shard,
            executor=executor,
            n_jobs=n_jobs,
            memory_limit=memory_limit,
            progress=progress,
            preload=preload,
            apart=apart,
        )
    try:
        work.end()
        if shard is None:
            pool.shutdown()  # what idle workers hold, and what draws the page, would be the most that is held
            (summarise if shown else write_quality)(output)
    except OSError as error:
        if not done.errors:
            raise
        # As on a full disk: what became of the runs is told first.
        warnings.warn(f"what all runs came to is not written: {error}", SharedMaskWarning, stacklevel=2)
    return done


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
    study = Survey.of(dataset, output, atlases, outputs, denoise_strategy, filters, cleaning)
    for key in shard_of(list(study.paths), shard):
        yield study.manifest(key)


@dataclass
class _Work:
    """What happens to each run's result."""

    study: Survey
    stop: bool
    watch: MemoryMonitor | None
    limit: int
    """Of all that is held meanwhile; bytes."""
    load: Load
    """Who loads confounds."""
    is_apart: bool = False
    """Whether this is a worker, which has few runs at a time."""
    _started: float = field(default_factory=time.time)
    _begun: dict[str, tuple[float, Manifest]] = field(default_factory=dict)
    """When work on each run began, and what was known of it then."""
    _prepared: set[str] = field(default_factory=set)
    """Runs of which all was asked that is asked before the work."""

    @cached_property
    def private(self) -> Path:
        return self.study.derivatives.root / PRIVATE

    @property
    def failures(self) -> Failures:
        return Failures(self.private / "failed")

    def begin(self) -> None:
        Derivatives.create(self.study.derivatives.root, self.study.derivatives.source)
        self.private.mkdir(exist_ok=True)
        write_text(self.study.derivatives.root / ".bidsignore", [_IGNORED])

    def extract(self, **how: Any) -> Study:
        """Have all runs worked on, and keep what comes of it."""
        analysis = self.study.analysis
        return extract_many(
            dict.fromkeys(self.study.paths, self.source),
            self.regions,
            strategy=analysis.outputs.statistics or None,
            on_result=self.keep,
            resume=Resumption(self.private / JOURNAL, self.study.asked, self.study.inputs, self.skip),
            variant=self.variant,
            **self.own_parameters(),
            **{name: value for name, value in analysis.cleaning.items() if name != "t_r"},
            **how,
        )

    def end(self) -> None:
        """Keep what the study's page says of this pass."""
        said = {
            "parameters": self._asked(),
            "notes": self.study.notes,
            "timeline": asdict(self._timeline(self._started)),
        }
        write_text(self.private / LAST, [json.dumps(said, default=str)])

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
        return self._known(key).coverage.regions

    def source(self, key: str) -> Source:
        """A run's image, opened when its manifest was drawn."""
        return self._known(key).image

    def _known(self, key: str) -> Manifest:
        """A run's manifest, drawn when it is first asked for, and again when it is prepared again.

        Its problems are raised.
        """
        if key not in self._begun or key in self._prepared:
            shown = self.watch is not None and self.study.analysis.outputs.reports
            begun = self.watch.sample().time if self.watch and shown else time.time()
            manifest = self.study.manifest(key, self.load)
            manifest.check()
            self._begun[key] = begun, manifest
            self._prepared.discard(key)
            for note in manifest.notes:
                warnings.warn(f"{key}: {note}", SharedMaskWarning, stacklevel=2)
        return self._begun[key][1]

    def variant(self, key: str) -> str:
        """What a run's outputs depend on besides its image, the regions and the parameters."""
        manifest = self._known(key)
        # The last that is asked before the work. Elsewhere many runs wait, here as many as there are jobs.
        self._begun[key] = self._begun[key][0], manifest.slim(self.is_apart or self.watch is not None)
        self._prepared.add(key)
        return f"{self.study.variant} {manifest.facts()}"

    def own_parameters(self) -> dict[str, Any]:
        """Functions of a run's key that give the parameters of this run alone."""
        own: dict[str, Callable[[str], Any]] = {"t_r": lambda key: self._known(key).t_r}
        if not self.study.analysis.outputs.voxels:
            own["probes"] = lambda key: self._known(key).probes
            own["finish"] = self._findable
        if self.study.analysis.denoise is not None:
            own["confounds"] = lambda key: self._denoising(key).confounds
            own["sample_mask"] = lambda key: self._denoising(key).sample_mask
        return own

    def _findable(self, key: str) -> Findable:
        known, outputs = self._known(key), self.study.analysis.outputs
        kept = None if known.denoising is None else known.denoising.kept
        of_run = known.coverage.spans, kept, known.run.confounds
        return Findable(outputs.kinds, outputs.fisher_z, *of_run, outputs.reports)

    def _denoising(self, key: str) -> Denoising:
        found = self._known(key).denoising
        assert found is not None
        return found

    def skip(self, key: str) -> None:
        """There is nothing more to do for it."""
        self._begun.pop(key, None)
        self._prepared.discard(key)

    def keep(self, key: str, signals: Any) -> Together:
        """Write a run's outputs; what they are is recorded as complete."""
        begun, known = self._begun[key]
        self.skip(key)  # nobody asks again
        manifest = known.with_coverage()
        with Together() as written:
            if (denoising := manifest.denoising) is not None:
                outliers = manifest.outputs.write_outliers(denoising.kept, denoising.n_timepoints)
                written.paths.append(outliers)
            if self.study.analysis.outputs.voxels:
                written.paths += self._write_voxels(manifest, signals)
            else:
                written.paths += self._write_tables(key, manifest, signals, begun)
        self.failures.remove(key)
        return written

    def _write_tables(self, key: str, manifest: Manifest, found: Findings, begun: float) -> list[Path]:
        """Signals, matrices, quality and the page."""
        coverage = manifest.coverage
        matrices = {of: coverage.spread(several) for of, several in found.related.items()}
        written = self._write_signals(manifest, found.signals, matrices, found.related)
        measures = as_texts({**found.measures, **manifest.covered()})
        written.append(manifest.outputs.write_quality(measures))
        if found.quality is not None:
            first = next(iter(found.signals.values()))
            written.append(self._report(key, manifest, first, found.quality, matrices, begun))
        return written

    def _write_signals(
        self, manifest: Manifest, signals: Mapping[str, Array], matrices: Matrices, related: Matrices
    ) -> list[Path]:
        """The tables of each atlas; of grayordinates also CIFTI-2 files of what is ``related`` of it."""
        analysis, coverage, facts = manifest.analysis, manifest.coverage, manifest.facts()
        write, written = manifest.outputs, list[Path]()
        for statistic, values in signals.items():
            values = np.atleast_2d(values)
            parts = coverage.split(values)
            for number, (atlas, table) in enumerate(zip(analysis.atlases, coverage.tables, strict=True)):
                of = atlas, statistic, parts[number], table, facts
                regions = None if manifest.run.is_volume else coverage.parts[number]
                for kind in analysis.outputs.kinds:
                    parcels = (regions, related[statistic, kind][number]) if regions else None
                    written += write.write_matrix(*of, kind, matrices[statistic, kind][number], parcels)
                if regions:
                    own = values[:, slice(*coverage.spans[number])]
                    written += write.write_parcels(atlas, statistic, own, table, regions, manifest.t_r)
                written.append(write.write_signals(*of))
        return written

    def _write_voxels(self, manifest: Manifest, signals: Sequence[Array]) -> list[Path]:
        coverage, facts, write = manifest.coverage, manifest.facts(), manifest.outputs
        parts = coverage.share([np.atleast_2d(series) for series in signals])
        pairs = zip(manifest.analysis.atlases, parts, strict=True)
        return [write.write_voxels(atlas, series, facts) for atlas, series in pairs]

    def _report(
        self,
        key: str,
        manifest: Manifest,
        signals: Array,
        quality: Quality,
        matrices: Matrices,
        begun: float,
    ) -> Path:
        coverage = manifest.coverage
        path = manifest.outputs.page
        names = [atlas.entities["atlas"] for atlas in self.study.analysis.atlases]
        parcels = [Parcels(*one) for one in zip(names, coverage.parts, coverage.tables, strict=True)]
        order, groups = _ordered(manifest, names[0], coverage.parts[0])
        RunReport(
            key,
            replace(manifest.image, t_r=manifest.t_r),
            parcels,
            signals,
            manifest.picture(),
            self._asked(),
            self._timeline(begun),
            manifest.table(),
            replace(quality, values=quality.values[:, order]),
            groups,
            {
                f"{kind} of {statistic}s, {name}": matrix
                for (statistic, kind), several in matrices.items()
                for name, matrix in zip(names, several, strict=True)
            },
            self.study.analysis.meshes,
        ).write(path)
        with atomic_write(thumbnail_of(self.study.derivatives.root, key)) as temporary:
            temporary.write_bytes(figures.thumbnail(quality.values[:, order]))
        return path

    def _asked(self) -> dict[str, Any]:
        analysis = self.study.analysis
        atlases = ", ".join(atlas.entities["atlas"] for atlas in analysis.atlases)
        asked = {**vars(analysis.outputs), **analysis.cleaning, "atlases": atlases}
        return asked | ({"denoise_strategy": str(analysis.denoise)} if analysis.denoise else {})

    def fail(self, key: str, error: Exception) -> None:
        self.skip(key)
        self.failures.add(key, error)
        if self.stop:
            raise error


def _ordered(manifest: Manifest, name: str, regions: Regions) -> tuple[Numbers, list[tuple[str, int]]]:
    """The order of the carpet's voxels: by tissue, else by network, region by region of the first atlas."""
    owner = carpet.owners(regions, manifest.probes)
    lut = manifest.analysis.atlases[0].lut
    return carpet.ordered(manifest.tissues() or carpet.groups_of(owner, regions, name, lut), owner)


def _extract_some(bare: Survey, memory_limit: Any, paths: Mapping[str, str], **how: Any) -> Study:
    """In a worker, which has the study without its runs: these of them."""
    work = _Work(replace(bare, paths=paths), False, None, 0, Denoise.load, is_apart=True)
    return work.extract(memory_limit=memory_limit, **how)
