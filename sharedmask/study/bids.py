"""BIDS trees: the preprocessed runs of a data set, and what lies beside each.

Covers: which images are runs, their masks, confounds, sidecars and spaces, found by entities. Does not
cover: names (``names``), atlases (``atlases``), writing (``derivatives``), reading images (``source``).

The tree is read as fMRIPrep and its peers write it: ``sub-X[/ses-Y]/func/..._desc-preproc_bold.nii.gz``
with masks and confounds beside it. It is walked once, and no index is kept. A file's name is the
one that the data set gives it, wherever links lead.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import field
from operator import attrgetter
from pathlib import Path
from typing import Any

from sharedmask.compute.journal import Inputs
from sharedmask.errors import DatasetError, NoInputError, ParameterError
from sharedmask.records import dataclass
from sharedmask.remote.addresses import absolute, place_of, url_of, without_query
from sharedmask.remote.objects import walk
from sharedmask.remote.trees import folders_of
from sharedmask.sources.names import BESIDE, ENTITIES, IMAGE_EXTENSIONS, Name, names_in, same
from sharedmask.sources.sidecar import DESCRIPTION, fetched, finite, read_json, sidecars_and_folders
from sharedmask.system import platform
from sharedmask.system.inputs import dangling, is_file
from sharedmask.system.process import cached_property

FILE_FORMATS = {"nifti": IMAGE_EXTENSIONS, "cifti": (".dtseries.nii",)}
"""Extensions of runs: volumes, or dense series of grayordinates."""
# PyBIDS's words, which filters of fMRIPrep have too.
_LONG = {
    "participant": "sub", "subject": "sub", "session": "ses", "template": "tpl", "acquisition": "acq",
    "ceagent": "ce", "reconstruction": "rec", "direction": "dir", "resolution": "res", "density": "den",
    "description": "desc", "inversion": "inv", "segmentation": "seg", "modality": "mod", "tracer": "trc",
}  # fmt: skip
_OF_FILES = ("datatype", "suffix", "extension")
# Whether a run has the entity; None: either way.
_QUERIES = {"Query.NONE": False, "Query.ANY": True, "*": True, "Query.OPTIONAL": None}
NATIVE = "native"
"""The space of a run whose name and sidecar tell none: that of its scanner."""
# Masks and confounds are of the head in the scanner, whichever of its images was preprocessed.
_SAME_HEAD = {"echo", "part"}
_IN_PLACE = {"space", "cohort"}  # what only a file with these entities is in the place of
# What a segmentation into tissues has in its name; without a space it is of the T1-weighted image.
_OF_HEAD = {"sub", "ses", "acq", "ce", "rec", "run", "space", "cohort", "res"}
_ANATOMICAL = {"T1w", "anat"}
_LEADING = ("sub-", "ses-", "func")  # what names of folders begin with that may lead to runs


@dataclass(frozen=True)
class Run:
    """One preprocessed run of the data set ``root``; what lies beside it is looked for when it is asked for.

    Raises DatasetError, MissingFileError: by each of these: a file beside the run that is a link to nothing,
    that cannot be read, or one of several that could be meant.
    """

    root: Path
    bold: Path
    name: Name

    @classmethod
    def of(cls, root: Path, bold: str | Path) -> "Run":
        """The run of this image.

        Raises ParameterError: the image has no BIDS name.
        """
        return cls(root, Path(bold), Name.parse(bold))

    @property
    def key(self) -> str:
        """Its name without an extension."""
        return str(self.name.replace(extension=""))

    @property
    def is_volume(self) -> bool:
        """Whether its image is one of voxels, not of grayordinates."""
        return self.name.extension in FILE_FORMATS["nifti"]

    @cached_property
    def folder(self) -> Path:
        """Where outputs of this run belong, below their dataset's root."""
        parts = [f"{key}-{self.name.entities[key]}" for key in ("sub", "ses") if key in self.name.entities]
        return Path(*parts, "func")

    @cached_property
    def mask(self) -> Path | None:
        """Its brain mask, on its grid; of another echo or part if it has none of its own."""
        wanted = (Name({key: "brain"}, "mask", "") for key in ("desc", "label"))
        return self._first_beside(wanted, IMAGE_EXTENSIONS, exact=_IN_PLACE)

    @cached_property
    def confounds(self) -> Path | None:
        """Its table of confounds, whatever space its images were resampled to."""
        wanted = (Name({"desc": "confounds"}, suffix, "") for suffix in ("timeseries", "regressors"))
        return self._first_beside(wanted, (".tsv",))

    @property
    def _reference(self) -> Path:
        return self.bold.with_name(str(self.name.replace(desc=None, suffix="boldref")))

    @cached_property
    def reference(self) -> Path | None:
        """Its reference image."""
        return found if is_file(found := self._reference) else None

    @cached_property
    def segmentation(self) -> Path | None:
        """Structures (``desc-aseg``) or tissues in its space: beside it, else among its head's images."""
        wanted = (Name({"desc": desc} if desc else {}, "dseg", "") for desc in ("aseg", "aparcaseg", None))
        return self._first_beside(wanted, IMAGE_EXTENSIONS, exact=_IN_PLACE) or self._of_head()

    def _of_head(self) -> Path | None:
        own = self.name.entities
        wanted = {"space": None if own.get("space") in _ANATOMICAL else own.get("space")}
        wanted["cohort"] = own.get("cohort")
        for above in dict.fromkeys((self.bold.parent.parent, self.root / f"sub-{own['sub']}")):
            folder = above / "anat"
            if url_of(folder) or not folder.is_dir():
                continue
            for entry, name in names_in(os.fspath(folder)):
                is_image = name.suffix == "dseg" and name.extension in IMAGE_EXTENSIONS
                is_plain = is_image and set(name.entities) <= _OF_HEAD
                if is_plain and all(name.entities.get(key) == value for key, value in wanted.items()):
                    return fetched(folder / entry)
        return None

    @property
    def inputs(self) -> Inputs:
        """All of its files that outputs may depend on, and the folders that tell which these are."""
        (_, folders), table = self._told, self.confounds
        beside = (table, table and table.with_suffix(".json"), self.mask, self._reference)
        return Inputs((self.bold, *self.sidecars, *filter(None, beside)), folders)

    @cached_property
    def _told(self) -> tuple[list[Path], dict[str, str]]:
        return sidecars_and_folders(self.bold)

    @property
    def sidecars(self) -> tuple[Path, ...]:
        """The JSON files that tell of it, the nearest last (the inheritance principle)."""
        return tuple(self._told[0][::-1])

    @cached_property
    def sidecar(self) -> Mapping[str, Any]:
        """What they say together."""
        merged: dict[str, Any] = {}
        for path in self.sidecars:
            merged.update(read_json(path))
        return merged

    @property
    def space(self) -> str:
        """Its name's, else its sidecar's, else :data:`NATIVE`."""
        return space_of(self.name) or reference_of(self.sidecar) or NATIVE

    @property
    def start_time(self) -> float | None:
        """Seconds from the first volume's begin to where the series stands, of the sidecar."""
        return finite(self.sidecar.get("StartTime"))

    def _first_beside(
        self, wanted: Iterable[Name], extensions: Sequence[str], exact: Set[str] = frozenset()
    ) -> Path | None:
        found = (self._beside(one, extensions, exact) for one in wanted)
        return next((path for path in found if path is not None), None)

    def _beside(self, wanted: Name, extensions: Sequence[str], exact: Set[str]) -> Path | None:
        """The file of this run with these entities and this suffix that is nearest by its other ones."""
        ranked: dict[tuple[int, ...], list[Path]] = {}
        for entry, name in names_in(os.path.dirname(self.bold)):
            if name.suffix == wanted.suffix and name.extension in extensions:
                rank = self._distance(name, wanted.entities, exact)
                if rank is not None:
                    ranked.setdefault(rank, []).append(self.bold.with_name(entry))
        if not ranked:
            return None
        nearest = ranked[min(ranked)]
        if len(nearest) > 1:
            raise DatasetError(
                f"{self.bold.name} has several files of one kind: {', '.join(path.name for path in nearest)}"
            )
        return fetched(nearest[0])

    def _distance(self, name: Name, wanted: Mapping[str, str], exact: Set[str]) -> tuple[int, ...] | None:
        """How far from this run's name; None if it is another run's."""
        own = {key: value for key, value in self.name.entities.items() if key not in wanted and key != "desc"}
        theirs = {key: value for key, value in name.entities.items() if key not in wanted}
        if any(name.entities.get(key) != value for key, value in wanted.items()):
            return None
        other = {key for key in theirs if not same(key, own.get(key), theirs[key])}
        lacking = set(own) - set(theirs)
        if other - _SAME_HEAD or lacking & exact:
            return None
        literal = sum(own.get(key) == value for key, value in theirs.items())
        return len(other), len(lacking), -literal, int(name.extension != self.name.extension)


def space_of(name: Name) -> str | None:
    """The space that a file's name tells; templates of several ages have one each."""
    entities = name.entities
    space = entities.get("space") or entities.get("tpl")
    return f"{space}+{entities['cohort']}" if space and "cohort" in entities else space


def reference_of(sidecar: Mapping[str, Any]) -> str | None:
    """The space that a sidecar tells: ``SpatialReference``, a name or the address of a template's file."""
    told = sidecar.get("SpatialReference") or sidecar.get("Space")
    if isinstance(told, Mapping):
        told = told.get("VolumeReference") or next(iter(told.values()), None)
    if not isinstance(told, str):
        return None
    with suppress(ParameterError):
        return space_of(Name.parse(without_query(told).rpartition(":")[2])) or told  # bids:DATASET:PATH
    return told


def find_runs(root: str | Path, filters: Mapping[str, Any] | None = None) -> list[Run]:
    """The preprocessed runs below ``root``, sorted by name.

    ``root``: a derivatives folder with a ``dataset_description.json``; on a server, one that lists its
    folders.
    ``filters``: entity -> the values wanted, one or several, with or without ``sub-`` before them;
    ``session`` and PyBIDS's other words stand for ``ses`` and others. None and ``"Query.NONE"`` are for runs
    without it, ``"*"`` and ``"Query.ANY"`` for those with any. ``datatype``, ``suffix`` and ``extension`` are
    known too. The default for ``desc`` is ``preproc``. ``file_format``, which is no entity, is one of
    :data:`FILE_FORMATS`: dense series have no default for ``desc``.

    Raises DatasetError: ``root`` is no BIDS data set, naming what is missing.
    Raises NoInputError: no run is left, telling the first filter that left none.
    Raises RemoteError: its server refuses it, cannot be reached, or lists no folders.
    """
    root = place_of(root)
    return [Run.of(root, path) for path in look_through(root, filters)[0]]


def look_through(root: Path, filters: Mapping[str, Any] | None) -> tuple[list[str], dict[Path, str]]:
    """Images of the runs that :func:`find_runs` finds; those left out, and links to nothing, with the reason.

    One walk; of very many runs nothing else is kept meanwhile.
    """
    filters = dict(filters or {})
    extensions = FILE_FORMATS[file_format := filters.pop("file_format", "nifti")]
    usual = {"desc": "preproc"} if file_format == "nifti" else {}
    asked = _Filters({key: _several(wanted) for key, wanted in {**usual, **_by_entity(filters)}.items()})
    if url := url_of(root):
        walk(url, _is_on_the_way, BESIDE)
    _check_dataset(root)
    runs, strays, closed = list[str](), dict[Path, str](), dict[Path, str]()
    for path, name in _images(root, closed):
        if isinstance(name, str):
            strays[Path(path)] = name
        elif name.suffix == "bold" and name.extension in extensions and asked.leave(name):
            runs.append(path)
    if not runs:
        none = f"holds no ..._bold{extensions[0]} below sub-*/[ses-*/]func"
        raise NoInputError(asked.said_of(absolute(root)) or f"{absolute(root)} {none}")
    return sorted(runs), strays | closed


@dataclass
class _Filters:
    """The values that are wanted of each entity, and what there was among the runs that came to it."""

    wanted: Mapping[str, Sequence[Any]]
    _there: dict[str, set[str | None]] = field(default_factory=dict, init=False)

    def leave(self, name: Name) -> bool:
        """Whether all leave a run."""
        for key, values in self.wanted.items():
            part = _part(name, key)
            self._there.setdefault(key, set()).add(part)
            if not any(_is_wanted(key, part, value) for value in values):
                return False
        return True

    def said_of(self, root: str) -> str:
        """The first that left none, if any run came to one: the last that any came to."""
        if not self._there:
            return ""
        key, found = list(self._there.items())[-1]
        there = joined({one for one in found if one is not None})
        wanted = [value for value in self.wanted[key] if value not in (None, "Query.NONE")]
        said = [f"is without {key}"] if len(wanted) < len(self.wanted[key]) else []
        if wanted:
            said.insert(0, f"has {key}-{'|'.join(sorted(str(_without_key(key, one)) for one in wanted))}")
        return f"no run of {root} {' or '.join(said)}; there are: {there}"


def _is_on_the_way(folder: str) -> bool:
    """Whether runs may lie below a folder of this name."""
    return folder == "func" or (folder.startswith(("sub-", "ses-")) and not {"_", "."} & set(folder))


def _open(folder: str, closed: dict[Path, str]) -> list[str]:
    """The folders in it that may lead to runs, sorted; of those that lead to nothing why, in ``closed``."""
    found = []
    with suppress(PermissionError), os.scandir(folder) as entries:
        for entry in sorted(entries, key=attrgetter("name")):
            if not entry.name.startswith(_LEADING):
                continue
            if entry.is_symlink() and (said := dangling(entry.path)):
                closed[Path(entry.path)] = f"{entry.path} {said}"
            elif platform.is_closed(entry.path):
                closed[Path(entry.path)] = f"{entry.path} may not be looked into"
            elif _is_folder(entry):
                found.append(entry.name)
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it leads to one; a link may lead to itself."""
    with suppress(OSError):
        return entry.is_dir()
    return False


def joined(values: set[str]) -> str:
    return ", ".join(sorted(values)) or "none"


def _check_dataset(root: Path) -> None:
    if not (url_of(root) or root.is_dir()):
        raise DatasetError(f"{root} is no folder")
    description = root / DESCRIPTION
    try:
        read_json(description)["Name"]
    except FileNotFoundError as error:
        if dangling(description):
            raise DatasetError(str(error)) from error
        raise DatasetError(f"{root} is no BIDS data set: it has no dataset_description.json") from None
    except KeyError:
        raise DatasetError(f"{description} cannot be read: it has no Name") from None


_Image = tuple[str, Name | str]
"""A path, and its name or why it has none."""


def _images(root: Path, closed: dict[Path, str]) -> Iterator[_Image]:
    """Those in folders of runs; folders that lead to nothing are ``closed``, and why."""
    for parent, entries in _of_runs(root, closed):
        parts = parent.removeprefix(os.fspath(root)).split(os.sep)
        for entry in entries:
            if entry.endswith(IMAGE_EXTENSIONS) and not entry.startswith("."):
                yield (path := os.path.join(parent, "func", entry)), _name(path, parts)


def _of_runs(root: Path, closed: dict[Path, str]) -> Iterator[tuple[str, Sequence[str]]]:
    """Folders of subjects and sessions, and what lies in the folder of runs of each."""
    if url := url_of(root):
        yield from ((os.fspath(root / parent), names) for parent, names in folders_of(url, "func"))
        return
    for subject in _open(os.fspath(root), closed):
        if subject.startswith("sub-"):
            yield from _below(os.path.join(root, subject), closed)


def _below(parent: str, closed: dict[Path, str]) -> Iterator[tuple[str, Sequence[str]]]:
    """The same of a folder and of its sessions."""
    for name in (there := _open(parent, closed)):
        if name.startswith("ses-"):
            yield from _below(os.path.join(parent, name), closed)
    if "func" in there:
        yield parent, sorted(os.listdir(os.path.join(parent, "func")))


def _name(path: str, parts: Sequence[str]) -> Name | str:
    """The name of an image below folders of these names."""
    try:
        name = Name.parse(path)
    except ParameterError as error:
        return str(error)
    for key in ("sub", "ses"):
        there = [part for part in parts if part.startswith(f"{key}-")]
        if there != [f"{key}-{name.entities[key]}" for key in (key,) if key in name.entities]:
            return f"{path} lies in the folder {joined(set(there))}, which its name does not tell"
    return name


def _by_entity(filters: Mapping[str, Any]) -> dict[str, Any]:
    found = {_LONG.get(key, key): wanted for key, wanted in filters.items()}
    if unknown := set(found) - {*ENTITIES, *_OF_FILES}:
        raise ParameterError(f"{', '.join(sorted(unknown))}: no BIDS entity; known are {', '.join(ENTITIES)}")
    return found


def _several(wanted: Any) -> list[Any]:
    return list(wanted) if isinstance(wanted, list | tuple | set) else [wanted]


def _without_key(key: str, value: Any) -> str | None:
    return None if value is None else str(value).removeprefix(f"{key}-")


def _part(name: Name, key: str) -> str | None:
    """The value of an entity, or of what a filter knows besides."""
    others = {"datatype": "func", "suffix": name.suffix, "extension": name.extension}
    return others.get(key, name.entities.get(key))


def _is_wanted(key: str, own: str | None, wanted: Any) -> bool:
    text = "Query.NONE" if wanted is None else str(wanted)
    if text in _QUERIES:
        return _QUERIES[text] in (None, own is not None)
    if key == "extension":
        return str(own).lstrip(".") == text.lstrip(".")
    return same(key, own, _without_key(key, text))
