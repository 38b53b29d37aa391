"""Atlases: label images, the tables that name their labels, and the spaces they are in.

Covers: finding an atlas by file or by name, what its outputs are called, whether it is in a run's space.
Does not cover: what a label image holds (``regions``), reading tables (``lut``).
"""

import hashlib
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import numpy as np

from sharedmask.errors import GridMismatchError, MissingFileError, NoInputError, ParameterError
from sharedmask.records import dataclass
from sharedmask.remote.addresses import place_of, url_of
from sharedmask.sources.names import IMAGE_EXTENSIONS, Name, image_stem, label
from sharedmask.sources.opening import open_source
from sharedmask.sources.sidecar import fetched, read_json
from sharedmask.spaces.grid import box_of
from sharedmask.spaces.space import Space
from sharedmask.study.bids import NATIVE, Run, joined, reference_of, space_of
from sharedmask.system.inputs import dangling, exists, is_file, opened
from sharedmask.system.process import cached_property

# Those of BIDS 1.11 and of TemplateFlow for images of the whole brain, that no study is called after.
_TEMPLATE = re.compile(
    r"(?<![A-Za-z0-9])(MNI152NLin20(?:09[a-c]|06)(?:Sym|Asym)|MNI152NLin6(?:Sym|Asym)|MNI152Lin|MNI305|MNIColin27"
    r"|MNIPediatricAsym|MNIInfant|IXI549Space|ICBM452\w+|OASIS30ANTs|UNCInfant\w*)(?![A-Za-z0-9])"
)
_FOLDER = re.compile(r"(?:tpl|space)-([a-zA-Z0-9+]+)")
# TemplateFlow's words for entities.
_TEMPLATEFLOWS = {"res": "resolution", "seg": "segmentation", "den": "density"}
# Spaces of one head each: another subject's is another space, though it has the same name.
_INDIVIDUAL = {NATIVE, "T1w", "T2w", "anat", "individual", "orig", "func", "bold", "boldref", "scanner"}


@dataclass(frozen=True)
class Atlas:
    """A label image, its name for ``atlas-`` and the table that names its labels."""

    image: Path
    name: str
    lut: Path | None
    resolutions: tuple[Path, ...] = ()
    """Images of it that differ in their resolution only, where there are several."""

    def nearest(self, space: Space) -> "Atlas":
        """The atlas in the resolution that is nearest to that of an image.

        Raises MissingFileError: that file is not there.
        """
        if len(self.resolutions) < 2:
            return self
        image = _nearest(self.resolutions, size_of(space))
        return Atlas(_with_content(fetched(image)), self.name, _lut(image))

    @classmethod
    def at(cls, path: str | Path, lut: str | Path | None = None) -> "Atlas":
        """The atlas in this file, by the name of the file, with this table alone."""
        image = place_of(path)
        return cls(image, _name(image), None if lut is None else place_of(lut))

    @cached_property
    def entities(self) -> dict[str, str]:
        """What tells its outputs from those of other atlases, as entities of their names."""
        with suppress(ParameterError):
            own = Name.parse(self.image).entities
            kept = {key: own[key] for key in ("seg", "scale") if key in own}
            if kept.get("seg") == self.name:
                del kept["seg"]
            return {"atlas": "+".join([self.name, *([own["desc"]] if "desc" in own else [])]), **kept}
        return {"atlas": self.name}

    @property
    def files(self) -> list[Path]:
        """All that it is read from, in any resolution."""
        images = [self.image, *self.resolutions]
        sidecars = [image.with_name(f"{image_stem(image)}.json") for image in images]
        tables = filter(None, [self.lut, *map(_lut, self.resolutions)])
        return [*images, *tables, *(path for path in sidecars if exists(path))]

    @cached_property
    def digest(self) -> str:
        """Of its file."""
        with opened(self.image) as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"

    @cached_property
    def space(self) -> str | None:
        """That its name tells, else its sidecar, else its folders; None if none does."""
        with suppress(ParameterError):
            if found := space_of(Name.parse(self.image)):
                return found
        sidecar = self.image.with_name(f"{image_stem(self.image)}.json")
        if (exists(sidecar) or dangling(sidecar)) and (found := reference_of(read_json(sidecar))):
            return found
        texts = [image_stem(self.image), *(folder.name for folder in self.image.absolute().parents)]
        matches = (_FOLDER.fullmatch(text) or _TEMPLATE.search(text) for text in texts)
        return next((match[1] for match in matches if match), None)

    def check_space(self, run: Run) -> None:
        """That it is in the space of ``run``, as far as that can be known.

        Raises GridMismatchError: it is in another one, naming both.
        """
        if self.space is None:
            return
        if self.space != run.space:
            where = (
                ""
                if run.space != NATIVE
                else " (neither its name nor SpatialReference in a sidecar tells another)"
            )
            raise GridMismatchError(
                f"atlas {self.name} is in the space {self.space}, {run.bold.name} in {run.space}{where}; "
                "choose runs by --space, or give an atlas in theirs"
            )
        with suppress(ParameterError):
            subject = Name.parse(self.image).entities.get("sub", run.name.entities["sub"])
            if self.space in _INDIVIDUAL and subject != run.name.entities["sub"]:
                raise GridMismatchError(
                    f"atlas {self.image} is in {self.space} of sub-{subject}, not of {run.bold.name}"
                )


def distinct(atlases: Iterable[Atlas]) -> dict[str, Atlas]:
    """The atlases by what their outputs are called.

    Raises ParameterError: outputs of two would go by one name.
    """
    found: dict[str, Atlas] = {}
    for atlas in atlases:
        name = "_".join(f"{key}-{value}" for key, value in atlas.entities.items())
        if name in found:
            both = f"{found[name].image} and {atlas.image}"
            raise ParameterError(f"{both} would both be written to ..._{name}_...: rename one of them")
        found[name] = atlas
    return found


def find_atlas(
    what: str | Path,
    folders: Sequence[str | Path] = (),
    space: str | None = None,
    *,
    download: bool = False,
) -> Atlas:
    """An atlas by its file, or by its name in one of ``folders`` or in TemplateFlow's.

    ``what``: a label image, or the value of its ``atlas-`` (or older ``seg-``) entity; ``Schaefer2018:400,7``
    for the one whose ``desc-``, ``scale-`` or ``seg-`` has these numbers or words.
    ``folders``: where names are looked for, subfolders included; then in ``TEMPLATEFLOW_HOME``, as far as
    files are there.
    ``space``: which of several images of that name: its ``tpl-`` or ``space-`` entity. Those that differ in
    nothing but their resolution go together, and each run takes its own.
    ``download``: have templateflow get what is not there of a name that no folder has. Else nothing is
    downloaded.

    Raises NoInputError: there is none, naming those that there are; or if several remain.
    Raises MissingFileError: it, or its table of names, is a link to nothing, a file without content, or
    cannot be downloaded.
    Raises ParameterError: it is to be downloaded and templateflow is not installed.
    """
    path = place_of(what)
    if url_of(path) or path.is_file() or dangling(path):
        return Atlas(fetched(path), _name(path), _lut(path))
    name, _, words = str(what).partition(":")
    there = list[Path]()
    for of_templateflow in (False, True):
        places = _templateflow(space) if of_templateflow else folders
        images, matching = _matching(places, name, words, space)
        if of_templateflow and download and not (matching and all(map(_is_complete, matching))):
            images, matching = _downloaded(name, words, space)
        if len(matching) > 1 and len(set(map(_without_resolution, matching))) == 1:
            return Atlas(matching[0], _name(matching[0]), _lut(matching[0]), tuple(matching))
        if len(matching) > 1:
            raise NoInputError(f"atlas {what} is in several files{_unlike(matching)}")
        for image in matching:
            return Atlas(_with_content(fetched(image)), _name(image), _lut(image))
        there += images
    raise NoInputError(_no_such(str(what), folders, there, space))


def _unlike(images: Sequence[Path]) -> str:
    """What several atlases of one name differ in, and what to do; their paths, if in nothing that is told."""
    names = [Name.parse(image).entities for image in images]
    values = {key: {name.get(key, "none") for name in names} for key in dict.fromkeys(chain(*names))}
    values = {"space": {str(Atlas(image, "", None).space) for image in images}} | values
    told = ("space", "desc", "scale", "seg")
    found = {key: values[key] for key in told if len(values.get(key, ())) > 1}
    if not found:
        return f": {', '.join(map(str, images))}; give one"
    ways = {"space": "choose runs by --space"}
    word = next((min(found[key]) for key in found if key not in ways), "")
    advice = dict.fromkeys(ways.get(key, f"add a word to its name, as :{word}") for key in found)
    differ = " and in ".join(f"{key} ({joined(those)})" for key, those in found.items())
    return f" that differ in {differ}: {', and '.join(advice)}, or give a path"


def _no_such(what: str, folders: Sequence[str | Path], there: Sequence[Path], space: str | None) -> str:
    """Why there is no atlas of this name, and what there is."""
    name, _, words = what.partition(":")
    if os.sep in what or what.endswith((*IMAGE_EXTENSIONS, ".dlabel.nii")):
        return f"{what} is no file"
    where = ", ".join(map(str, folders)) or "any folder"
    none = f"{what} is neither a file nor an atlas of {where}"
    if called := [image for image in there if _is_called(image, name, words)]:
        spaces = joined({str(Atlas(image, name, None).space) for image in called})
        return f"atlas {what} is in {spaces}, the runs in {space}: choose runs by --space, or another atlas"
    if called := [image for image in there if _is_called(image, name, "")]:
        names = (Name.parse(image).entities for image in called)
        parts = {f"{key}-{own[key]}" for own in names for key in ("desc", "scale", "seg") if key in own}
        return f"{none}: of {name} there are {joined(parts)}"
    if not (there or folders):
        return f"{none}: name the folder of atlases (--atlases-dir), or have them downloaded (--download)"
    return f"{none}; there are: {joined(set(map(_name, there)))}"


def _matching(
    folders: Iterable[str | Path], name: str, words: str, space: str | None
) -> tuple[list[Path], list[Path]]:
    """The atlases there, and those of them that are asked for."""
    images = [image for folder in folders for image in _images(folder)]
    matching = [image for image in images if _is_called(image, name, words)]
    if space is not None and len(matching) > 1:
        matching = [image for image in matching if Atlas(image, name, None).space == space]
    return images, matching


def _is_complete(image: Path) -> bool:
    """Whether it and its table have content."""
    return all(map(_has_content, filter(None, (image, _table(image)))))


def _has_content(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def _downloaded(name: str, words: str, space: str | None) -> tuple[list[Path], list[Path]]:
    """As :func:`_matching` of TemplateFlow's home, which has got all of these; of one atlas only."""
    if find_spec("templateflow") is None:
        hint = "pip install 'sharedmask[atlases]'"
        raise ParameterError(f"downloading atlas {name} needs templateflow: {hint}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a home is made
        from templateflow import conf

        conf.update(local=True, overwrite=False, silent=True)  # the names of all its files, without a network
    images, matching = _matching(_templateflow(space), name, words, space)
    if len(set(map(_without_resolution, matching))) == 1:
        for image in matching:
            _get(image)
            if (table := _table(image)) is not None:
                _get(table)
    return images, matching


def _get(file: Path) -> None:
    """Have TemplateFlow's client download a file of its home."""
    if _has_content(file):
        return
    from templateflow import api

    name = Name.parse(file)
    own = {_TEMPLATEFLOWS.get(key, key): value for key, value in name.entities.items() if key != "tpl"}
    asked = {key: int(value) if key in ("resolution", "cohort") else value for key, value in own.items()}
    exactly = {"desc": None, **asked, "suffix": name.suffix, "extension": name.extension}
    try:
        api.get(name.entities["tpl"], **exactly)
    except Exception as error:  # of requests, of its own, of DataLad
        raise MissingFileError(f"{file} cannot be downloaded: {' '.join(str(error).split())}") from error


def _templateflow(space: str | None) -> list[Path]:
    """The folder of a template in TemplateFlow's home, or that home."""
    home = Path(os.environ.get("TEMPLATEFLOW_HOME") or "~/.cache/templateflow").expanduser()
    folder = home if space is None else home / f"tpl-{space.partition('+')[0]}"
    return [folder] if folder.is_dir() else []


def _images(folder: str | Path) -> list[Path]:
    endings = tuple(f"_dseg{extension}" for extension in (*IMAGE_EXTENSIONS, ".dlabel.nii"))
    every = sorted(Path(folder).expanduser().absolute().rglob("*_dseg.*nii*"))
    return [path for path in every if path.name.endswith(endings)]


def _without_resolution(image: Path) -> tuple[Path, str]:
    return image.parent, str(Name.parse(image).replace(res=None, extension=""))


def _is_called(image: Path, name: str, words: str) -> bool:
    """Whether an atlas has this name and, in its entities, each word or whole number."""
    atlas = Atlas(image, _name(image), None)
    if name not in (atlas.name, atlas.entities["atlas"]):
        return False
    entities = Name.parse(image).entities
    texts = [entities[key] for key in ("desc", "scale", "seg") if key in entities]
    return all(
        any(re.search(rf"(?<![0-9]){re.escape(word)}(?![0-9])", text, re.IGNORECASE) for text in texts)
        for word in filter(None, words.split(","))
    )


def _nearest(images: Sequence[Path], voxel_size: float) -> Path:
    """The first with the resolution that is nearest; links to nothing and empty files have none."""
    whole = [image for image in images if _has_content(image)] or list(images[:1])
    if len(whole) < 2:
        return whole[0]
    off = {image: abs(size_of(open_source(str(image)).grid) - voxel_size) for image in whole}
    return next(image for image in whole if off[image] <= min(off.values()) + 1e-3)


def size_of(space: Space) -> float:
    """The side of a cube as large as a voxel, in mm."""
    grid = box_of(space, "an atlas of voxels")
    return float(abs(np.linalg.det(grid.affine[:3, :3])) ** (1 / 3))


def _with_content(image: Path) -> Path:
    if not _has_content(image):
        raise MissingFileError(
            f"{image} has no content: get it (of TemplateFlow with --download or `templateflow.api.get`, "
            "on a machine that has a network)"
        )
    return image


def _name(path: Path) -> str:
    with suppress(ParameterError):
        entities = Name.parse(path).entities
        if found := entities.get("atlas") or entities.get("seg"):
            return found
    if found := label(image_stem(path)):
        return found
    raise ParameterError(f"{path} has no ASCII letter or digit in its name, to name outputs by: rename it")


def _lut(path: Path) -> Path | None:
    """The table beside an atlas, whose content is there."""
    table = _table(path)
    return table if table is None else fetched(table)


def _table(path: Path) -> Path | None:
    """The table beside an atlas: of the same name, or of its name without what only images differ in."""
    candidates = [f"{image_stem(path)}.tsv"]
    with suppress(ParameterError):
        name = Name.parse(path)
        plain = name.replace(extension=".tsv", tpl=None, space=None, res=None, den=None, cohort=None)
        candidates += [str(name.replace(extension=".tsv", res=None, den=None)), str(plain)]
    for candidate in candidates:
        for folder in (path.parent, path.parent.parent):
            table = folder / candidate
            if is_file(table) or dangling(table):
                return table
    return None
