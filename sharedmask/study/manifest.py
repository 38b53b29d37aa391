"""Manifests: of each run that is found what is read, written, and already seen to be wrong.

Covers: everything of a run that can be known before its voxels are read, for dry runs, pages and sidecars.
Does not cover: finding files (``bids``, ``atlases``), signals (``extraction``), pages (``pages``).
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from sharedmask.compute.journal import Inputs
from sharedmask.compute.request import check_length
from sharedmask.errors import ParameterError, SharedMaskError, SharedMaskWarning
from sharedmask.records import dataclass
from sharedmask.regions.coverage import Coverage
from sharedmask.regions.regions import Regions
from sharedmask.remote.addresses import absolute, named, url_of
from sharedmask.reports.carpet import tissues_of
from sharedmask.reports.meshes import check_mesh
from sharedmask.reports.quality import probes_of
from sharedmask.sources.by_row import places_with_values
from sharedmask.sources.names import Name
from sharedmask.sources.opening import open_source
from sharedmask.sources.source import Source
from sharedmask.spaces.grid import box_of
from sharedmask.study.analysis import Analysis, Outputs
from sharedmask.study.atlases import Atlas
from sharedmask.study.bids import NATIVE, Run, look_through
from sharedmask.study.completion import stamp_of
from sharedmask.study.denoising import SMOOTH_AROMA, Denoise, Denoising
from sharedmask.study.derivatives import Derivatives, RunDerivatives
from sharedmask.study.tasks import may_be_small
from sharedmask.system.process import cached_property
from sharedmask.typing import Array, Numbers

_PICTURED_VOLUMES = 10
_PLAIN = (str, int, float, type(None))
Load = Callable[[Denoise, Run, int], Denoising]


@dataclass
class Manifest:
    """What is known of a run before its voxels are read; :meth:`draw` finds it out.

    ``rows``: what is read, for people: file by file, with the repetition time, the space and where they are
    from.
    ``notes``: what was found missing and is no error.
    ``problems``: what ends this run.
    """

    run: Run
    analysis: Analysis
    derivatives: Derivatives
    load: Load = field(default=Denoise.load, repr=False)
    """Who loads its confounds."""
    rows: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[Exception] = field(default_factory=list)
    source: Source | None = field(default=None, repr=False)
    t_r: float | None = None
    origin: str = ""
    """Of the repetition time."""
    denoising: Denoising | None = field(default=None, repr=False)
    _coverage: Coverage | None = field(default=None, repr=False)
    probes: Numbers = field(default_factory=lambda: np.empty(0, np.intp), repr=False)
    """Voxels that stand for the brain."""
    _brain: Array | None = field(default=None, repr=False)
    _valued: Array | None = field(default=None, repr=False)
    """Which elements of a dense series have values, in bits: reading it all for that is done once."""

    @classmethod
    def draw(
        cls, run: Run, analysis: Analysis, derivatives: Derivatives, load: Load = Denoise.load
    ) -> "Manifest":
        """Look at all that ``run`` has for ``analysis``; nothing is raised."""
        drawn = cls(run, analysis, derivatives, load)
        for step in (drawn._image, drawn._mask, drawn._time, drawn._confounds, drawn._space, drawn._regions):
            try:
                step()
            except Exception as error:
                drawn.problems.append(error)
        return drawn

    @property
    def outputs(self) -> RunDerivatives:
        """Where they go, and how they are written."""
        return self.derivatives.of(self.run, self.analysis)

    @property
    def written(self) -> list[Path]:
        """Tables and pages that will be written."""
        return self.outputs.planned

    @property
    def image(self) -> Source:
        """The run's image, opened; of a manifest that was checked."""
        assert self.source is not None
        return self.source

    @property
    def coverage(self) -> Coverage:
        """The regions as far as they are covered; of a manifest that was checked and is not slim."""
        assert self._coverage is not None
        return self._coverage

    def check(self) -> None:
        """Raise the first of its problems."""
        if self.problems:
            raise self.problems[0]

    def slim(self, whole: bool) -> "Manifest":
        """Without what it takes memory to keep until the run is done; ``whole``: but with its coverage."""
        denoising = None if self.denoising is None else self.denoising.slim()
        return replace(self, _coverage=self._coverage if whole else None, _brain=None, denoising=denoising)

    def with_coverage(self) -> "Manifest":
        """With it again."""
        if self._coverage is not None:
            return self
        again = replace(self, problems=[], rows=dict(self.rows), notes=[])
        again._mask()
        again._regions()
        return replace(again, notes=self.notes)

    def covered(self) -> dict[str, float]:
        """The regions of all atlases, and how many of them have no signals."""
        shares = [row.coverage for table in self.coverage.tables for row in table]
        left_out = len(shares) - len(self.coverage.regions)
        return {"median_coverage": float(np.median(shares)), "n_regions": len(shares), "n_left_out": left_out}

    def table(self) -> dict[str, str]:
        """What is read, what is written, and what is to be said, for people."""
        written = {f"writes {number}": str(path) for number, path in enumerate(self.written, 1)}
        return {**self.rows, **written, **({"note": "; ".join(self.notes)} if self.notes else {})}

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        yield self.analysis.key(self.run)
        problems = (" ".join(str(problem).split()) for problem in self.problems)
        rows = [*self.table().items(), *(("problem", problem) for problem in problems)]
        width = max(len(name) for name, _ in rows)
        yield from (f"  {name:{width}}  {value}" for name, value in rows)

    def facts(self) -> dict[str, Any]:
        """What the sidecars of outputs say of it."""
        uri, run, denoising = self.derivatives.uri, self.run, self.denoising
        used = [run.bold, *([run.mask] if run.mask else []), *([denoising.file] if denoising else [])]
        facts: dict[str, Any] = {
            "Sources": list(map(uri, used)),
            "Space": run.space,
            "BrainMask": uri(run.mask) if run.mask else None,
        }
        if self.t_r is not None:
            facts |= {"RepetitionTime": self.t_r, "SamplingFrequency": 1 / self.t_r}
            facts["RepetitionTimeSource"] = self.origin
        if run.start_time is not None:
            facts["StartTime"] = run.start_time
        if denoising is not None:
            facts |= denoising.facts(uri)
        if steps := self._steps():
            facts["SoftwareFilters"] = {"nilearn.signal.clean": steps}
        return facts | ({"Notes": self.notes} if self.notes else {})

    def _steps(self) -> dict[str, Any]:
        steps = {name: value for name, value in self.analysis.asked.items() if name != "t_r"}
        if self.denoising is not None:
            steps |= {"confounds": self.denoising.columns, "dropped_volumes": self.denoising.dropped.tolist()}
        return steps | ({"t_r": self.t_r} if self.analysis.filters else {})

    def picture(self) -> Array:
        """The reference image beside the run, else the mean of its first volumes; in the image's space.

        Without values for a dense series.
        """
        source = self.image
        if source.models is not None:
            return np.empty(0)  # nothing is drawn on it
        if self.run.reference is not None:
            found = open_source(self.run.reference)
            if found.shape[:3] == source.shape[:3]:
                return found.read().reshape(source.shape[:3])
        volume, total = np.empty(source.n_voxels, source.dtype), np.zeros(source.n_voxels)
        count = min(_PICTURED_VOLUMES, source.n_timepoints)
        with source.volumes() as reader:
            for _ in range(count):
                reader.readinto(volume)
                total += volume
        return (total / count * source.slope + source.inter).reshape(source.shape[:-1], order="F")

    def tissues(self) -> list[str] | None:
        """Which tissue each probe is; None without a segmentation in the run's space that can be read."""
        with contextlib.suppress(SharedMaskError, OSError, ValueError):
            if (found := self.run.segmentation) is not None:
                structures = "desc" in Name.parse(found).entities
                tissues = tissues_of(found, structures, box_of(self.image.grid, "tissues"), self.probes)
                self.rows["tissues"] = self._name(found)
                return tissues
        return None

    # --- what is looked at -----------------------------------------------------------------------

    def _name(self, path: Path) -> str:
        return os.fspath(path).removeprefix(f"{self.run.root}{os.sep}")

    def _image(self) -> None:
        self.rows["bold"] = self._name(self.run.bold)
        self.source = source = open_source(str(self.run.bold), self.run.sidecars[::-1])
        shape, what = " x ".join(map(str, source.grid.shape)), "elements" if source.models else "voxels"
        self.rows["bold"] += f": {shape} {what}, {source.n_timepoints} volumes of {source.dtype}"
        if self.analysis.outputs.connectivity and source.n_timepoints < 2:
            raise ParameterError(f"connectivity needs several volumes: {self.run.bold.name} has one")
        for mesh in self.analysis.meshes:
            check_mesh(mesh, source.models)

    def _mask(self) -> None:
        self.rows["mask"] = "not found"
        if self.source is not None and self.source.models is not None:
            if self._valued is None:
                inside = np.zeros(self.source.n_voxels, bool)
                inside[places_with_values(self.source)] = True
                self._valued = np.packbits(inside)
            self._brain = np.flatnonzero(np.unpackbits(self._valued, count=self.source.n_voxels))
            there = f"{len(self._brain)} of {self.source.n_voxels} elements have values"
            self.rows["mask"] = f"{there}: finite throughout, and not all 0"
            return
        mask = self.run.mask
        if mask is None:
            self.notes.append("no brain mask was found: coverage counts every voxel of the image")
            return
        self.rows["mask"] = self._name(mask)
        if self.source is not None:
            regions, grid = Regions.from_any(str(mask)), self.source.grid
            if not regions.fits(grid):
                self.notes.append("the brain mask lies on another grid: it is resampled, nearest neighbour")
                regions = Regions.from_any(str(mask), grid, resampling_target="data")
            self._brain = regions.on(grid).union

    def _time(self) -> None:
        self.rows["repetition time"] = "not known"
        if not self.run.sidecars:
            self.notes.append("no sidecar was found")
        given = self.analysis.cleaning.get("t_r")
        if given is not None:
            self.t_r, self.origin = float(given), "given"
        elif self.source is not None:
            self.t_r = self.source.t_r
            # Sidecars are named without the ".." that the root may have.
            root = f"{named(absolute(self.run.root))}{os.sep}"
            self.origin = "of " + self.source.t_r_origin.removeprefix(root)
        if self.t_r is not None:
            self.rows["repetition time"] = f"{self.t_r:g} s, {self.origin}"
        _ = self.run.sidecar  # one that cannot be read ends this run
        if self.source is not None and given is None:
            self._doubt(self.source)
        if self.source is not None and self.analysis.filters:
            check_length(self.source, *map(self.analysis.asked.get, ("low_pass", "high_pass")))

    def _doubt(self, source: Source) -> None:
        if source.t_r is None and self.analysis.filters:
            raise ParameterError(f"low_pass and high_pass need t_r (--t-r): {source.t_r_origin}")
        if source.t_r_doubt or source.t_r is None:
            self.notes.append(
                source.t_r_doubt or "no repetition time was found, in sidecars or in the header"
            )

    def _confounds(self) -> None:
        asked = self.analysis.denoise
        self.rows["confounds"] = "not found" if asked else "none asked for"
        if (found := self.run.confounds) is not None:
            self.rows["confounds"] = f"{self._name(found)}, not used"
        if asked is None or self.source is None:
            return
        self.denoising = denoising = self.load(asked, self.run, self.source.n_timepoints)
        self.rows["confounds"] = (
            f"{self._name(denoising.file)}: {len(denoising.columns)} columns of the strategy {asked}, "
            f"{len(denoising.kept)} of {denoising.n_timepoints} volumes kept"
        )

    def _space(self) -> None:
        if self.source is not None:
            self.analysis = self.analysis.near(self.source.grid)
        for atlas in self.analysis.atlases:
            named = "labels without names" if atlas.lut is None else f"names of {atlas.lut}"
            space = "space not known" if atlas.space is None else f"space {atlas.space}"
            self.rows[f"atlas {atlas.entities['atlas']}"] = f"{atlas.image}, {named}, {space}"
        self.rows["space"] = "not told: its own" if self.run.space == NATIVE else self.run.space
        for atlas in self.analysis.atlases:
            atlas.check_space(self.run)

    def _regions(self) -> None:
        if self.source is not None:
            atlases = self.analysis.regions_on(self.source.grid)
            self._coverage = covered = Coverage.from_atlases(
                atlases, self._brain, self.analysis.outputs.min_coverage
            )
            inside = None if self.source.models is not None else self._brain
            self.probes = probes_of(covered.regions.union if inside is None else inside)


@dataclass(frozen=True)
class Survey:
    """What is asked of which runs of which data set."""

    analysis: Analysis
    derivatives: Derivatives
    paths: Mapping[str, str]
    """Of the runs' images, by what the runs are called; there may be very many."""
    clashes: Mapping[Path, str]
    notes: tuple[str, ...]
    """Of the study as a whole."""
    _looked_at: dict[str, Run] = field(default_factory=dict, init=False, repr=False)
    """The run whose inputs were asked for, until its manifest is: what lies beside it is looked for once."""

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
    ) -> "Survey":
        denoise = Denoise.of(strategy)
        analysis = Analysis(tuple(atlases), outputs or Outputs(), denoise, cleaning)
        analysis.check()
        if denoise is not None and denoise.wants_smooth_aroma:
            filters = {"desc": SMOOTH_AROMA, **(filters or {})}
        derivatives = Derivatives.at(output, dataset)
        paths, strays = look_through(derivatives.source, filters)
        run_of = partial(Run.of, derivatives.source)
        found, keys = dict[Path, str](), dict[str, str]()
        for _, beside in groupby(paths, key=os.path.dirname):  # others have folders of their own
            if len(several := list(map(run_of, beside))) > 1:
                found |= clashes({run.bold: derivatives.of(run, analysis).planned for run in several})
            for run in several:
                # Of two that would be written to the same files neither is; each goes by its file's name.
                key = run.bold.name if run.bold in found else analysis.key(run)
                keys[key] = os.fspath(run.bold)
        notes = (*analysis.notes, *(f"left out: {why}" for why in strays.values()))
        study = cls(analysis, derivatives, keys, found, notes)
        for note in notes:
            warnings.warn(note, SharedMaskWarning, stacklevel=4)
        return study

    @property
    def variant(self) -> str:
        """What outputs depend on besides the images, their regions and parameters."""
        names = [(atlas.entities, atlas.lut is not None) for atlas in self.analysis.atlases]
        return repr((self.analysis.outputs, names, self.analysis.steps))

    @cached_property
    def asked(self) -> str:
        """What is asked of any run, and its atlases as they are now; empty if that has no text."""
        cleaning = sorted(self.analysis.cleaning.items())
        if not all(isinstance(value, _PLAIN) for _, value in cleaning):
            return ""
        files = [file for atlas in self.analysis.atlases for file in atlas.files]
        return stamp_of(repr((self.variant, self.analysis.denoise, cleaning)), files)

    def inputs(self, key: str) -> Inputs:
        """All that a run's outputs depend on."""
        self._looked_at.clear()
        run = self._looked_at[key] = self._run(key)
        with contextlib.suppress(SharedMaskError, OSError):  # which drawing its manifest tells
            if run.bold not in self.clashes:
                return run.inputs
        return Inputs()

    def _run(self, key: str) -> Run:
        return Run.of(self.derivatives.source, self.paths[key])

    def manifest(self, key: str, load: Load = Denoise.load) -> Manifest:
        run = self._looked_at.pop(key, None) or self._run(key)
        drawn = Manifest.draw(run, self.analysis, self.derivatives, load)
        if run.bold in self.clashes:
            drawn.problems.insert(0, ParameterError(self.clashes[run.bold]))
        return drawn

    @property
    def travels(self) -> bool:
        """Whether all that is asked can be sent to others."""
        return bool(self.asked)

    def is_alone(self, key: str) -> bool:
        """Whether a worker may do it without a word of what else there is."""
        path = self.paths[key]
        return not self.clashes.get(Path(path)) and url_of(path) is None and may_be_small(path)


def clashes(planned: Mapping[Path, Sequence[Path]]) -> dict[Path, str]:
    """Of images and the files they would be written to: those that share one, and what to say of it."""
    owners: dict[Path, Path] = {}
    found: dict[Path, str] = {}
    for bold, path in ((bold, path) for bold, paths in planned.items() for path in paths):
        first = owners.setdefault(path, bold)
        if first != bold:
            found[first] = found[bold] = f"{first} and {bold} would both be written to {path}"
    return found
