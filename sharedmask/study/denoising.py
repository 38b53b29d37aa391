"""Denoising: what is taken for noise, as a user states it, and what that is in one run.

Covers: strategies and their parameters by nilearn's names, columns by pattern, dummy scans; loading them,
what is wrong with a table, which volumes are kept. Does not cover: finding the table (``bids``), regressing
it out (``cleaning``).
"""

import contextlib
import fnmatch
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from sharedmask.compute.confounds import named_columns
from sharedmask.errors import MissingFileError, ParameterError
from sharedmask.records import dataclass
from sharedmask.remote.addresses import absolute, url_of, without_query
from sharedmask.sources.names import Name
from sharedmask.sources.opening import open_source
from sharedmask.study.bids import Run
from sharedmask.system.inputs import exists, read_bytes
from sharedmask.system.process import cached_property
from sharedmask.typing import NDArray

STRATEGIES: Mapping[str, tuple[str, ...]] = {
    "simple": ("high_pass", "motion", "wm_csf"),
    "scrubbing": ("high_pass", "motion", "wm_csf", "scrub"),
    "compcor": ("high_pass", "motion", "compcor"),
    "ica_aroma": ("high_pass", "wm_csf", "ica_aroma"),
}
"""nilearn's, and the components of each."""
_PARAMETERS = {
    "high_pass": (),
    "motion": ("motion",),
    "wm_csf": ("wm_csf",),
    "global_signal": ("global_signal",),
    "compcor": ("compcor", "n_compcor"),
    "ica_aroma": ("ica_aroma",),
    "scrub": ("scrub", "fd_threshold", "std_dvars_threshold"),
}
COMPONENTS = tuple(_PARAMETERS)
_MODELS = ("basic", "power2", "derivatives", "full")
_ALLOWED = {
    **dict.fromkeys(("motion", "wm_csf", "global_signal"), _MODELS),
    "compcor": (
        "anat_combined",
        "anat_separated",
        "temporal",
        "temporal_anat_combined",
        "temporal_anat_separated",
    ),
    "ica_aroma": ("full", "basic"),
}
SMOOTH_AROMA = "smoothAROMAnonaggr"


@dataclass(frozen=True)
class Denoise:
    """What is taken for noise, and which volumes go: of any run that fMRIPrep or its peers preprocessed.

    Parameters
    ----------
    strategy : str or sequence of str
        One of nilearn's strategies ("simple", "scrubbing", "compcor", "ica_aroma"), or components of
        ``load_confounds``: high_pass, motion, wm_csf, global_signal, compcor, ica_aroma, scrub.
        By default those that the parameters are of.
    motion, wm_csf, global_signal : {"basic", "power2", "derivatives", "full"}, optional
    compcor : {"anat_combined", "anat_separated", "temporal", "temporal_anat_combined", ...}, optional
    n_compcor : int or "all", optional
        Components of each mask.
    ica_aroma : {"full", "basic"}, optional
        "full" is for images that ICA-AROMA denoised (``desc-smoothAROMAnonaggr``), "basic" regresses out the
        components that it found.
    scrub : int, optional
        Shorter segments between volumes that go, go too; 0 keeps them.
    fd_threshold, std_dvars_threshold : float, optional
        Of framewise displacement (mm) and standardized DVARS.
    demean : bool
        Remove the mean of confounds over the volumes that are kept.
    columns : str or sequence of str
        Further columns of the table, as ``"trans_*"``; several may be joined by commas.
    dummy_scans : int or "auto"
        Volumes at the beginning that go; "auto" for those that the table calls not steady, which go with any
        strategy.

        Everything but ``columns`` and ``dummy_scans`` is nilearn's ``load_confounds``.

    Raises
    ------
    ParameterError
        What is no such thing, or belongs to no component of the strategy.

    Examples
    --------
    >>> Denoise("scrubbing", fd_threshold=0.3).components
    ('high_pass', 'motion', 'wm_csf', 'scrub')
    >>> print(Denoise(motion="basic", columns="csf,white_*"))
    motion (motion=basic), columns csf, white_*
    """

    strategy: str | Sequence[str] = ()
    motion: str | None = None
    wm_csf: str | None = None
    global_signal: str | None = None
    compcor: str | None = None
    n_compcor: int | str | None = None
    ica_aroma: str | None = None
    scrub: int | None = None
    fd_threshold: float | None = None
    std_dvars_threshold: float | None = None
    demean: bool = True
    columns: str | Sequence[str] = ()
    dummy_scans: int | str = 0

    def __post_init__(self) -> None:
        if not isinstance(self.strategy, str):
            object.__setattr__(self, "strategy", tuple(self.strategy))
        columns = self.columns.split(",") if isinstance(self.columns, str) else self.columns
        object.__setattr__(self, "columns", tuple(filter(None, map(str.strip, columns))))
        self._check()

    def _check(self) -> None:
        if isinstance(self.strategy, str) and self.strategy not in STRATEGIES:
            raise ParameterError(f"denoising strategy {self.strategy!r} is none of {', '.join(STRATEGIES)}")
        if unknown := [one for one in self.components if one not in COMPONENTS]:
            known = f"a strategy ({', '.join(STRATEGIES)}) nor components ({', '.join(COMPONENTS)})"
            raise ParameterError(f"denoising by {unknown[0]!r}: it is neither {known}")
        for name, value in self.parameters.items():
            if value not in _ALLOWED.get(name, (value,)):
                raise ParameterError(f"{name}={value!r} is none of {', '.join(_ALLOWED[name])}")
            if name not in _ALLOWED and value != "all" and (isinstance(value, str) or value < 0):
                raise ParameterError(f"{name}={value!r} is no number from 0 on")
            if not any(name in _PARAMETERS[component] for component in self.components):
                raise ParameterError(f"{name} does nothing in the denoising strategy {self}: its components "
                                     f"are {', '.join(self.components) or 'none'}")  # fmt: skip
        dummies = self.dummy_scans
        if dummies != "auto" and (not isinstance(dummies, int) or isinstance(dummies, bool) or dummies < 0):
            raise ParameterError(f"dummy_scans={dummies!r} is neither a number of volumes nor 'auto'")
        if not (self.components or self.columns or dummies):
            raise ParameterError("nothing to denoise by: give a strategy, columns or dummy_scans")

    @classmethod
    def of(cls, given: "str | Sequence[str] | Denoise | None") -> "Denoise | None":
        """What a parameter ``denoise_strategy`` means.

        Parameters
        ----------
        given : str, sequence of str, Denoise or None
            As users write it.

        Returns
        -------
        Denoise or None
            None if nothing is given.
        """
        return given if given is None or isinstance(given, cls) else cls(given)  # type: ignore[arg-type]

    @property
    def parameters(self) -> dict[str, Any]:
        """Those of nilearn's components that are given."""
        names = (name for names in _PARAMETERS.values() for name in names)
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @cached_property
    def components(self) -> tuple[str, ...]:
        """What nilearn's ``load_confounds`` is asked for."""
        own = STRATEGIES.get(self.strategy, ()) if isinstance(self.strategy, str) else tuple(self.strategy)
        if not own:
            given = self.parameters
            own = tuple(one for one, names in _PARAMETERS.items() if any(name in given for name in names))
            return ("high_pass", *own) if "compcor" in own else own  # which nilearn needs with it
        return (*own, "global_signal") if self.global_signal and "global_signal" not in own else own

    @property
    def wants_smooth_aroma(self) -> bool:
        """Whether it is for images that ICA-AROMA denoised."""
        return "ica_aroma" in self.components and self.ica_aroma != "basic"

    @property
    def words(self) -> list[str]:
        """What it is called in names of files; other words for what gives other numbers."""
        named = [self.strategy] if isinstance(self.strategy, str) else list(self.components)
        words = ["denoise", *(word for name in named for word in name.split("_"))]
        words += [f"{name.replace('_', '')}{_text(value)}" for name, value in self.parameters.items()]
        if self.columns:
            digest = hashlib.blake2b(repr(self.columns).encode(), digest_size=3).hexdigest()
            words.append(f"columns{digest}")
        words += [f"dummy{_text(self.dummy_scans)}"] if self.dummy_scans else []
        return words + ([] if self.demean else ["nodemean"])

    def __str__(self) -> str:
        parts = [self.strategy] if isinstance(self.strategy, str) else [", ".join(self.components)]
        if self.parameters:
            parts[0] += f" ({', '.join(f'{name}={value}' for name, value in self.parameters.items())})"
        parts += [f"columns {', '.join(self.columns)}"] if self.columns else []
        parts += [f"{self.dummy_scans} dummy scans"] if self.dummy_scans else []
        return ", ".join(filter(None, parts))

    def load(self, run: Run, n_timepoints: int) -> "Denoising":
        """What that is in ``run``.

        Parameters
        ----------
        run : Run
            What stands in the data set beside it is known.
        n_timepoints : int
            Volumes of its image.

        Returns
        -------
        Denoising
            Columns, (n_timepoints, n_confounds), and the volumes that are kept.

        Raises
        ------
        MissingFileError
            If the run has no table of confounds, or a link to none.
        ParameterError
            If the table lacks columns or rows, or no volume is kept; the table is named.
        """
        file = run.confounds
        if file is None:
            raise MissingFileError(f"{run.bold} has no ..._desc-confounds_timeseries.tsv beside it: "
                                   f"the denoising strategy {self} needs one")  # fmt: skip
        nilearns = self.components or self.dummy_scans == "auto"  # which nilearn finds whatever it is asked
        frames, kept = self._of_nilearn(file, run.name) if nilearns else ([], None)
        numbers = np.arange(n_timepoints) if kept is None else np.asarray(kept, np.intp)
        if self.columns:
            there = {name for frame in frames for name in frame.columns}
            frames = [*frames, self._of_table(file, numbers, there)]
        for frame in frames:
            if len(frame) != n_timepoints:
                raise ParameterError(
                    f"{file} has {len(frame)} rows for the {n_timepoints} volumes of {run.bold.name}"
                )
        if isinstance(self.dummy_scans, int):
            numbers = numbers[numbers >= self.dummy_scans]
        if not len(numbers):
            raise ParameterError(f"{file}: the denoising strategy {self} keeps none of "
                                 f"the {n_timepoints} volumes of {run.bold.name}")  # fmt: skip
        names = [str(name) for frame in frames for name in frame.columns]
        values = np.hstack([frame.to_numpy(np.float64) for frame in frames]) if names else None
        return Denoising(self, file, names, numbers, n_timepoints, values)

    def of_image(self, bold: str | Path, n_timepoints: int | None = None) -> "Denoising":
        """What that is in the run of this file, by the table of confounds beside it.

        Parameters
        ----------
        bold : str or path
            With a BIDS name.
        n_timepoints : int, optional
            Default: of the image.

        Returns
        -------
        Denoising
            Columns, (n_timepoints, n_confounds), and the volumes that are kept.
        """
        run = _run_of(bold)
        return self.load(run, n_timepoints or open_source(str(run.bold)).n_timepoints)

    def _of_nilearn(self, file: Path, name: Name) -> tuple[list[Any], Any]:
        from nilearn.interfaces.fmriprep import load_confounds, load_confounds_strategy

        # nilearn looks for the table beside an image, by that one's name.
        desc = name.entities.get("desc") if self.wants_smooth_aroma else "preproc"
        beside = str(Name.parse(file).replace(desc=desc, suffix="bold", extension=".nii.gz"))
        asked = {**self.parameters, "demean": self.demean}
        try:
            with _here(file) as folder:
                image = str(folder / beside)
                if isinstance(self.strategy, str) and self.ica_aroma is None:
                    confounds, kept = load_confounds_strategy(image, self.strategy, **asked)
                else:
                    components = self.components or ("high_pass",)  # of none nilearn warns
                    confounds, kept = load_confounds(image, components, **asked)
        except Exception as error:
            named_columns(file)  # which says what is no number, and where
            lacks = "it has no column " if isinstance(error, KeyError) else ""
            text = lacks + " ".join(str(error).split())
            raise ParameterError(f"{file} does not serve the denoising strategy {self}: {text}") from error
        return [confounds] if self.components else [], kept

    def _of_table(self, file: Path, kept: NDArray[np.intp], there: set[str]) -> Any:
        """The columns that the patterns are of, as nilearn prepares its own."""
        import pandas as pd

        names, values = named_columns(file)
        wanted = dict.fromkeys(name for one in self.columns for name in fnmatch.filter(names, one))
        for pattern in self.columns:
            if not fnmatch.filter(names, pattern):
                raise ParameterError(f"{file} has no column {pattern}; there are: {', '.join(names)}")
        chosen = [name for name in wanted if name not in there]
        table = values[:, [names.index(name) for name in chosen]]
        if len(table) > 1:  # derivatives begin with the second volume
            table[0] = np.where(np.isnan(table[0]), table[1], table[0])
        if (bad := np.argwhere(~np.isfinite(table))).size:
            raise ParameterError(f"{file}: no finite number in row {bad[0][0]}, column {chosen[bad[0][1]]!r}")
        if self.demean and len(kept) and len(table) > kept.max():
            table = table - table[kept].mean(axis=0)
        return pd.DataFrame(table, columns=chosen)


@contextlib.contextmanager
def _here(file: Path) -> Iterator[Path]:
    """A folder of this machine with the table, and what tells of it; of a server's they are copied."""
    if url_of(file) is None:
        yield file.parent
        return
    with tempfile.TemporaryDirectory(prefix="sharedmask-") as folder:
        for one in (file, file.with_suffix(".json")):
            if exists(one):
                Path(folder, one.name).write_bytes(read_bytes(one))
        yield Path(folder)


def _text(value: Any) -> str:
    """A value in the name of a file: ``0p5``, ``all``, ``anatcombined``."""
    return str(value).replace(".", "p").replace("_", "").replace("-", "m").replace("+", "")


@dataclass(frozen=True)
class Denoising:
    """What a strategy takes out of one run.

    ``file``: the table of confounds.
    ``columns``: names of the confounds.
    ``kept``: numbers of the volumes that stay.
    ``n_timepoints``: of the run.
    ``confounds``, (n_timepoints, n_columns): None if there is no column.
    """

    asked: Denoise
    file: Path
    columns: list[str]
    kept: NDArray[np.intp] = field(repr=False)
    n_timepoints: int
    confounds: NDArray[np.float64] | None = field(repr=False)

    @property
    def cleaning(self) -> dict[str, Any]:
        """As parameters of :func:`sharedmask.extract` and all calls that clean."""
        return {"confounds": self.confounds, "sample_mask": self.sample_mask}

    def slim(self) -> "Denoising":
        """Without the confounds."""
        return replace(self, confounds=None)

    @property
    def dropped(self) -> NDArray[np.intp]:
        """Numbers of the volumes that go."""
        return np.setdiff1d(np.arange(self.n_timepoints), self.kept)

    @property
    def sample_mask(self) -> NDArray[np.intp] | None:
        """:attr:`kept`; None if that is all."""
        return None if len(self.kept) == self.n_timepoints else self.kept

    def facts(self, called: Callable[[Path], str] = str) -> dict[str, Any]:
        """What sidecars say of it."""
        asked, strategy = self.asked, self.asked.strategy
        function = "load_confounds_strategy" if isinstance(strategy, str) else "load_confounds"
        defaults = {one.name: one.default for one in fields(Denoise) if one.name != "strategy"}
        return {
            "Confounds": {
                "Strategy": f"nilearn.interfaces.fmriprep.{function}: "
                + (strategy if isinstance(strategy, str) else ", ".join(asked.components)),
                "Parameters": {
                    name: value
                    for name, default in defaults.items()
                    if (value := getattr(asked, name)) != default
                },
                "File": called(self.file),
                "Columns": self.columns,
            },
            "NumberOfVolumes": self.n_timepoints,
            "KeptVolumes": self.kept.tolist(),
        }


def _run_of(bold: str | Path) -> Run:
    path = Path(without_query(absolute(bold)))
    return Run.of(path.parent, path)


@dataclass(frozen=True)
class Denoisings:
    """What a strategy takes out of each image of a study, loaded when that is prepared.

    ``images``: key -> path.
    ``kept``: whether what was taken out of an image is asked for, by :meth:`pop`.
    """

    asked: Denoise
    images: Mapping[Any, Any]
    kept: bool = True
    _loaded: dict[Any, Denoising] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, given: "str | Sequence[str] | Denoise | Denoisings", images: Mapping[Any, Any]
    ) -> "Denoisings":
        """What a parameter ``denoise`` means."""
        if isinstance(given, cls):
            return given
        asked = Denoise.of(given)  # type: ignore[arg-type]
        assert asked is not None
        return cls(asked, images, kept=False)

    @property
    def parameters(self) -> dict[str, Callable[[Any], Any]]:
        """As those of :func:`sharedmask.extract_many`: functions of the key."""
        loaded = self._loaded.__getitem__ if self.kept else self._loaded.pop
        return {"confounds": self.confounds, "sample_mask": lambda key: loaded(key).sample_mask}

    def confounds(self, key: Any) -> NDArray[np.float64] | None:
        """Those of an image; they are not kept."""
        image = self.images[key]
        if not isinstance(image, str | Path):
            raise ParameterError(
                f"{key}: denoise looks beside the file of an image, and this one has no path"
            )
        loaded = self.asked.of_image(image)
        self._loaded[key] = loaded.slim()
        return loaded.confounds

    def files(self, key: Any) -> list[Path]:
        """The table beside an image, and what tells of it."""
        return list(map(Path, _run_of(self.images[key]).inputs.files))

    def forget(self, key: Any) -> None:
        """Nobody will ask what was taken out of an image."""
        self._loaded.pop(key, None)

    def pop(self, key: Any) -> Denoising:
        """What was taken out of an image, without the confounds."""
        return self._loaded.pop(key)
