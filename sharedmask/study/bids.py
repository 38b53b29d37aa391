"""BIDS names: what a file is called, and the preprocessed runs of a derivatives tree.

Covers: entities and their order, finding runs with their masks, confounds and repetition times,
atlases with their look-up tables. Does not cover: writing (``derivatives``), reading images
(``source``).

The tree is read as fMRIPrep and its peers write it: ``sub-X[/ses-Y]/func/..._desc-preproc_bold.nii.gz``
with masks and confounds beside it. No index is kept: a study is a few thousand names.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sharedmask.errors import DatasetError, NoInputError, ParameterError

# The order of BIDS 1.11; "stat" is of no standard yet, and stands where XCP-D writes it.
_ORDER = (
    "sub tpl ses cohort sample task tracksys acq nuc voi ce trc stain rec dir run mod echo flip inv mt "
    "part proc hemi space split recording chunk atlas seg scale res den stat label desc"
)
ENTITIES = tuple(_ORDER.split())
_LONG = {"participant": "sub", "subject": "sub", "session": "ses", "template": "tpl"}
_PART = re.compile(r"([a-zA-Z0-9]+)-([a-zA-Z0-9+]+)")
_IMAGE = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Name:
    """The name of a BIDS file: entities, suffix, extension.

    Examples
    --------
    >>> name = Name.parse("sub-01_task-rest_desc-preproc_bold.nii.gz")
    >>> name.entities["task"], name.suffix
    ('rest', 'bold')
    >>> str(name.replace(desc=None, atlas="AAL", suffix="timeseries", extension=".tsv"))
    'sub-01_task-rest_atlas-AAL_timeseries.tsv'
    """

    entities: Mapping[str, str]
    suffix: str
    extension: str

    @classmethod
    def parse(cls, path: str | Path) -> "Name":
        """The parts of a file's name.

        Raises
        ------
        ParameterError
            If it is no BIDS name.
        """
        stem, dot, extension = Path(path).name.partition(".")
        *parts, suffix = stem.split("_")
        found = [_PART.fullmatch(part) for part in parts]
        if not suffix or not parts or not all(found):
            raise ParameterError(f"{path} has no BIDS name: key-value pairs and a suffix, joined by _")
        return cls({match[1]: match[2] for match in found if match}, suffix, dot + extension)

    def replace(self, *, suffix: str | None = None, extension: str | None = None, **entities: Any) -> "Name":
        """This name with some parts replaced; an entity that is None is left out."""
        changed = {key: value for key, value in {**self.entities, **entities}.items() if value is not None}
        return Name(
            changed,
            self.suffix if suffix is None else suffix,
            self.extension if extension is None else extension,
        )

    def __str__(self) -> str:
        keys = sorted(self.entities, key=lambda key: (_rank(key), key))
        return "_".join([*(f"{key}-{self.entities[key]}" for key in keys), self.suffix]) + self.extension


def _rank(key: str) -> int:
    return ENTITIES.index(key) if key in ENTITIES else ENTITIES.index("desc")


def label(text: str) -> str:
    """``text`` as the value of an entity: letters and digits only."""
    return re.sub(r"[^a-zA-Z0-9+]", "", text)


@dataclass(frozen=True)
class Run:
    """One preprocessed run and what lies beside it."""

    bold: Path
    name: Name
    mask: Path | None
    confounds: Path | None
    sidecar: Mapping[str, Any] = field(repr=False)

    @property
    def t_r(self) -> float | None:
        """Repetition time in seconds, of the sidecar."""
        found = self.sidecar.get("RepetitionTime")
        return float(found) if isinstance(found, int | float) and found > 0 else None

    @property
    def folder(self) -> Path:
        """Where outputs of this run belong, below their dataset's root."""
        parts = [f"{key}-{self.name.entities[key]}" for key in ("sub", "ses") if key in self.name.entities]
        return Path(*parts, "func")


def find_runs(root: str | Path, filters: Mapping[str, str | Sequence[str]] | None = None) -> list[Run]:
    """The preprocessed runs below ``root``, sorted by name.

    Parameters
    ----------
    root : str or path
        A derivatives folder with a ``dataset_description.json``.
    filters : mapping, optional
        Entity -> the values wanted, one or several, with or without ``sub-`` before them;
        ``participant`` and ``session`` stand for ``sub`` and ``ses``. The default for ``desc``
        is ``preproc``.

    Raises
    ------
    DatasetError
        If ``root`` is no BIDS data set, naming what is missing.
    NoInputError
        If no run is left, telling the first filter that left none.
    """
    root = Path(root).expanduser()
    _check_dataset(root)
    paths = [path for path in _images(root) if path.name.split(".")[0].endswith("_bold")]
    if not paths:
        raise NoInputError(f"{root} holds no ..._bold.nii.gz below sub-*/[ses-*/]func")
    names = {path: Name.parse(path) for path in paths}
    for key, wanted in {"desc": "preproc", **_by_entity(filters or {})}.items():
        values = {_without_key(key, value) for value in ([wanted] if isinstance(wanted, str) else wanted)}
        left = {path: name for path, name in names.items() if name.entities.get(key) in values}
        if not left:
            there = {name.entities[key] for name in names.values() if key in name.entities}
            raise NoInputError(
                f"no run of {root} has {key}-{'|'.join(sorted(values))}; there are: {_joined(there)}"
            )
        names = left
    return [_run(root, path, name) for path, name in sorted(names.items())]


def _joined(values: set[str]) -> str:
    return ", ".join(sorted(values)) or "none"


def _check_dataset(root: Path) -> None:
    if not root.is_dir():
        raise DatasetError(f"{root} is no folder")
    try:
        json.loads((root / "dataset_description.json").read_text(encoding="utf-8"))["Name"]
    except FileNotFoundError:
        raise DatasetError(f"{root} is no BIDS data set: it has no dataset_description.json") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{root}/dataset_description.json cannot be read: {error!r}") from error


def _images(root: Path) -> Iterator[Path]:
    for pattern in ("sub-*/func", "sub-*/ses-*/func"):
        for folder in sorted(root.glob(pattern)):
            yield from (path for path in sorted(folder.iterdir()) if path.name.endswith(_IMAGE))


def _by_entity(filters: Mapping[str, Any]) -> dict[str, Any]:
    found = {_LONG.get(key, key): wanted for key, wanted in filters.items()}
    if unknown := set(found) - set(ENTITIES):
        raise ParameterError(f"{', '.join(sorted(unknown))}: no BIDS entity; known are {', '.join(ENTITIES)}")
    return found


def _without_key(key: str, value: str) -> str:
    return str(value).removeprefix(f"{key}-")


def _run(root: Path, path: Path, name: Name) -> Run:
    mask = name.replace(desc="brain", suffix="mask")
    # Confounds are of the run, whatever space its images were resampled to.
    confounds = name.replace(
        space=None, res=None, den=None, cohort=None, desc="confounds", suffix="timeseries", extension=".tsv"
    )
    return Run(
        path,
        name,
        _beside(path, str(mask)),
        _beside(path, str(confounds)),
        _sidecar(root, path, name),
    )


def _beside(path: Path, name: str) -> Path | None:
    found = path.with_name(name)
    return found if found.is_file() else None


def _sidecar(root: Path, path: Path, name: Name) -> dict[str, Any]:
    """What JSON files say of a run, nearer ones winning (the inheritance principle)."""
    merged: dict[str, Any] = {}
    folders = [path.parent, *path.parent.parents]
    for folder in reversed(folders[: folders.index(root) + 1]):
        for other in sorted(folder.glob(f"*{name.suffix}.json")):
            with suppress(ParameterError):
                if Name.parse(other).entities.items() <= name.entities.items():
                    merged.update(_json(other))
    return merged


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error


# --- atlases -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Atlas:
    """A label image, its name for ``atlas-`` and the table that names its labels."""

    image: Path
    name: str
    lut: Path | None


def find_atlas(what: str | Path, folders: Sequence[str | Path] = (), space: str | None = None) -> Atlas:
    """An atlas by its file, or by its name in one of ``folders``.

    Parameters
    ----------
    what : str or path
        A label image, or the value of its ``atlas-`` (or older ``seg-``) entity.
    folders : sequence of str or path
        Where names are looked for, subfolders included.
    space : str, optional
        Which of several images of that name: its ``tpl-`` or ``space-`` entity.

    Raises
    ------
    NoInputError
        If there is none, naming those that there are; or if several remain.
    """
    path = Path(what).expanduser()
    if path.is_file():
        return Atlas(path, _atlas_name(path), _lut(path))
    found = [
        (image, _atlas_name(image))
        for folder in folders
        for image in sorted(Path(folder).expanduser().rglob("*"))
        if image.name.endswith(tuple(f"_dseg{extension}" for extension in _IMAGE))
    ]
    matching = [image for image, name in found if name == str(what)]
    if space is not None and len(matching) > 1:
        matching = [image for image in matching if space in _spaces(image)]
    if len(matching) == 1:
        return Atlas(matching[0], str(what), _lut(matching[0]))
    if matching:
        raise NoInputError(f"atlas {what} is in several files: {', '.join(map(str, matching))}; give one")
    where = ", ".join(map(str, folders)) or "any folder"
    there = _joined({name for _, name in found})
    raise NoInputError(f"{what} is neither a file nor an atlas of {where}; there are: {there}")


def _atlas_name(path: Path) -> str:
    with suppress(ParameterError):
        entities = Name.parse(path).entities
        if found := entities.get("atlas") or entities.get("seg"):
            return found
    return label(path.name.partition(".")[0])


def _spaces(path: Path) -> set[str]:
    with suppress(ParameterError):
        entities = Name.parse(path).entities
        return {entities[key] for key in ("tpl", "space") if key in entities}
    return set()


def _lut(path: Path) -> Path | None:
    """The table beside an atlas: of the same name, or of its name without what only images differ in."""
    stem = path.name.partition(".")[0]
    candidates = [f"{stem}.tsv"]
    with suppress(ParameterError):
        name = Name.parse(path)
        plain = name.replace(extension=".tsv", tpl=None, space=None, res=None, den=None, cohort=None)
        candidates += [str(name.replace(extension=".tsv", res=None, den=None)), str(plain)]
    for candidate in candidates:
        for folder in (path.parent, path.parent.parent):
            if (folder / candidate).is_file():
                return folder / candidate
    return None
