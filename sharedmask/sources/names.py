"""Names of BIDS files: entities, suffix, extension.

Covers: entities and their order, which values are the same, labels, the names in a folder. Does not cover:
which of them are runs (``study.bids``), what outputs are called (``derivatives``).
"""

import os
import re
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from sharedmask.decoding.codecs import ENDINGS
from sharedmask.errors import ParameterError
from sharedmask.records import dataclass
from sharedmask.remote.addresses import named, url_of
from sharedmask.system import inputs

# The order of BIDS 1.11; "stat" and "meas" are of no standard yet, and stand where XCP-D writes the first.
_ORDER = (
    "sub tpl ses cohort sample task tracksys acq nuc voi ce trc stain rec dir run mod echo flip inv mt "
    "part proc hemi space split recording chunk atlas seg scale res den stat meas label desc"
)
ENTITIES = tuple(_ORDER.split())
IMAGE_EXTENSIONS = (".nii.gz", ".nii")
BESIDE = (*IMAGE_EXTENSIONS, ".tsv", ".json")
"""Extensions of what lies in folders of runs and tells of them."""
_NUMBERS = {"run", "echo", "flip", "inv", "split", "chunk"}
_BEFORE_DOT = re.compile(r"(?:[a-zA-Z0-9]+-[a-zA-Z0-9+]+_)+[a-zA-Z0-9]+")
_SUFFIX = re.compile(r"[a-zA-Z0-9]+")
_PACKED = "|".join(map(re.escape, (*ENDINGS, ".zst")))
_KINDS = r"(\.[dp]?(label|scalar|tseries|func|shape))?"
_IMAGE = re.compile(
    rf"(?<=.)({_KINDS}\.(nii({_PACKED})?|gii)|\.(img|hdr)({_PACKED})?|\.mg[hz]|\.annot)$", re.IGNORECASE
)


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

        Raises ParameterError if it is no BIDS name.
        """
        stem, dot, extension = os.path.basename(os.fspath(path)).partition(".")
        if not _BEFORE_DOT.fullmatch(stem):
            raise ParameterError(f"{path} has no BIDS name: key-value pairs and a suffix, joined by _")
        *parts, suffix = stem.split("_")
        entities = dict([part.split("-") for part in parts])
        if len(entities) < len(parts):
            raise ParameterError(f"{path} has no BIDS name: an entity is there twice")
        return cls(entities, suffix, dot + extension)

    def replace(self, *, suffix: str | None = None, extension: str | None = None, **entities: Any) -> "Name":
        """This name with some parts replaced; an entity that is None is left out."""
        changed = {key: value for key, value in {**self.entities, **entities}.items() if value is not None}
        return Name(
            changed,
            self.suffix if suffix is None else suffix,
            self.extension if extension is None else extension,
        )

    def __str__(self) -> str:
        keys = sorted(self.entities, key=_place)
        return "_".join([*(f"{key}-{self.entities[key]}" for key in keys), self.suffix]) + self.extension


_RANKS = {key: rank for rank, key in enumerate(ENTITIES)}


def _place(key: str) -> tuple[int, str]:
    return _RANKS.get(key, _RANKS["desc"]), key


# A folder that is changed twice within one tick of a file server's clock has one time for both.
_TICK = 2.0


def names_in(folder: str) -> tuple[tuple[str, Name], ...]:
    """Images, tables and sidecars in a folder that have a name, sorted; one may be a suffix without entities.

    A folder is listed again if it was changed: one above many runs is asked for each of them.
    """
    if url_of(folder):
        there = (path.name for path in inputs.listed(Path(folder)) or ())
        return _parsed(entry for entry in there if entry.endswith(BESIDE))
    mark = _mark(folder)
    return _listed(folder, mark) if mark else _listed.__wrapped__(folder, mark)


@lru_cache(maxsize=64)
def _listed(folder: str, mark: str) -> tuple[tuple[str, Name], ...]:
    return _parsed(_beside(folder, mark))


@lru_cache(maxsize=64)
def _digested(folder: str, mark: str) -> str:
    names = "/".join(_beside(folder, mark))
    return blake2b(names.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _beside(folder: str, mark: str) -> list[str]:
    return _there(folder, mark) if mark else _there.__wrapped__(folder, mark)


@lru_cache(maxsize=8)
def _there(folder: str, _: str) -> list[str]:
    return sorted(entry for entry in os.listdir(folder) if entry.endswith(BESIDE))


def _mark(folder: str) -> str:
    """Number and times; "" while another change would have the same time."""
    facts = os.stat(folder)
    is_settled = abs(time.time() - facts.st_mtime) > _TICK
    return f"{facts.st_ino}-{facts.st_mtime_ns}-{facts.st_ctime_ns}" if is_settled else ""


def state_of(folder: str) -> str:
    """What a folder of this machine is now: its number and times, and a digest of those names in it."""
    mark = _mark(folder)
    return f"{mark} {_digested(folder, mark) if mark else _digested.__wrapped__(folder, mark)}"


def is_as(folder: str, state: str) -> bool:
    """Whether it has the names that it had, for which it is listed only if it was changed."""
    try:
        mark = _mark(folder)
        was, _, names = state.partition(" ")
        return (bool(mark) and was == mark) or state_of(folder).endswith(f" {names}")
    except OSError:
        return False


def _parsed(entries: Iterable[str]) -> tuple[tuple[str, Name], ...]:
    found = ((entry, parsed_name(entry)) for entry in entries)
    return tuple((entry, name) for entry, name in found if name is not None)


def parsed_name(entry: str) -> Name | None:
    """The parts of a file's name, which may be a suffix without entities; None if it is no BIDS name."""
    stem, dot, extension = entry.partition(".")
    if _SUFFIX.fullmatch(stem):
        return Name({}, stem, dot + extension)
    try:
        return Name.parse(entry)
    except ParameterError:
        return None


def same(key: str, one: str | None, other: str | None) -> bool:
    """Whether two values of an entity are one: numbers may have zeros before them."""
    if key in _NUMBERS and one and other and one.isdigit() and other.isdigit():
        return int(one) == int(other)
    return one == other


def label(text: str) -> str:
    """``text`` as the value of an entity: letters and digits only."""
    return re.sub(r"[^a-zA-Z0-9+]", "", text)


def camel(text: str) -> str:
    """Words of letters and digits, joined as entities need them: ``standardDeviation``."""
    first, *rest = text.split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in rest)


def image_stem(path: str | Path) -> str:
    """The name of an image, mask or atlas without what tells its kind; other dots belong to the name.

    Examples
    --------
    >>> image_stem("atlases/atlas-Toy_dseg.dlabel.nii"), image_stem("lh.aparc.annot")
    ('atlas-Toy_dseg', 'lh.aparc')
    """
    return _IMAGE.sub("", os.path.basename(named(path)))
