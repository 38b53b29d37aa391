"""Sidecars: the JSON files that tell of an image, and the repetition time that they and its header tell.

Covers: which sidecars an image has, by the inheritance principle of BIDS, reading one, which repetition time
counts and where it is from. Does not cover: what BIDS files are called (``names``), headers (``nifti``), runs
and what else lies beside them (``study.bids``).

A sidecar is the file of the image's name, else of fewer entities, beside it or further up to the root of its
data set; the nearest that tells a fact wins. A tree that is reached through links is read as it is named,
then as it is named at their end.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sharedmask.decoding.codecs import without_codec
from sharedmask.errors import DatasetError, MissingFileError, ParameterError, SharedMaskError
from sharedmask.records import dataclass
from sharedmask.remote.addresses import is_http, named, url_of, without_query
from sharedmask.sources.names import Name, names_in, parsed_name, same, state_of
from sharedmask.system import inputs, platform
from sharedmask.system.budget import MemoryBudget
from sharedmask.system.identity import settled_mark
from sharedmask.system.inputs import dangling

DESCRIPTION = "dataset_description.json"
"""The file that marks the root of a data set."""
_KEY = "RepetitionTime"
_EACH = "VolumeTiming"  # when each volume begins, which BIDS has instead
_LONG = 400.0  # seconds; more than that is a repetition time in milliseconds
# Two that differ by less are one, rounded twice.
_SAME = 1e-3
# Bytes of a sidecar that are read without asking, that are kept for who asks next, and what one byte takes
# when it is parsed.
_SMALL, _FEW = 2**20, 2**16
_PARSED = 24


@dataclass(frozen=True)
class RepetitionTime:
    """The time from one volume to the next, and where it is from."""

    seconds: float | None
    origin: str
    """The sidecar's path, or ``its header``; of one that is not known, why it is not."""
    doubt: str = ""
    """What is to be said of it, although it may be right."""

    def told_by(self, name: str, paths: Iterable[Path]) -> "RepetitionTime":
        """What the nearest of these sidecars tells, if one does; ``name`` is the image's in messages."""
        for path in paths:
            try:
                found = read_json(path)
            except (OSError, SharedMaskError) as error:
                return _unknown(name, str(error))
            if _KEY in found or _EACH in found:
                return self._beside(name, path, found).checked(name)
        return self.checked(name)

    def _beside(self, name: str, path: Path, found: dict[str, Any]) -> "RepetitionTime":
        seconds = positive(found[_KEY]) if _KEY in found else _step(found[_EACH])
        if seconds is None and _KEY in found:
            said = f"{path} says {_KEY}: {json.dumps(found[_KEY])[:80]}"
            return _unknown(name, f"{said}, which is no positive number")
        if seconds is None:
            return _unknown(name, f"{path} says {_EACH}, by which its volumes are not evenly spaced")
        if self.seconds is None or math.isclose(self.seconds, seconds, rel_tol=_SAME):
            return RepetitionTime(seconds, named(path))
        there = f"{self.seconds:g} s in its header, {seconds:g} s in {named(path)}"
        said = f"{name} has two repetition times: {there}"
        return RepetitionTime(seconds, named(path), f"{said}; the sidecar's is taken")

    def checked(self, name: str) -> "RepetitionTime":
        """With a doubt if it is longer than those of any scan."""
        if self.seconds is None or self.seconds < _LONG:
            return self
        said = self.doubt or f"{name} has a repetition time of {self.seconds:g} s, of {self.origin}"
        return replace(self, doubt=f"{said}: it may be in milliseconds, t_r gives another")


def _step(times: Any) -> float | None:
    """The seconds from one volume to the next, if they begin at even times."""
    begins = [finite(time) for time in times] if isinstance(times, list) else []
    if len(begins) < 2 or None in begins:
        return None
    steps = np.diff(np.asarray(begins, np.float64))
    return positive(float(steps.mean())) if np.allclose(steps, steps.mean(), rtol=_SAME) else None


def _unknown(name: str, why: str) -> RepetitionTime:
    said = f"the repetition time of {name} is not known, whatever its header says: {why}"
    return RepetitionTime(None, said, said)


def positive(found: Any) -> float | None:
    """A number of a sidecar as a positive one, if it is one."""
    seconds = finite(found)
    return seconds if seconds is not None and seconds > 0 else None


def finite(found: Any) -> float | None:
    """A number of a sidecar, if it is one."""
    with suppress(OverflowError):
        is_number = isinstance(found, int | float) and not isinstance(found, bool)
        return float(found) if is_number and math.isfinite(found) else None
    return None


def read_json(path: Path) -> dict[str, Any]:
    """What a sidecar says.

    Raises FileNotFoundError: also of a link to nothing, as DataLad leaves for a file that it has not got yet.
    Raises DatasetError if it is no JSON object in UTF-8, with or without a mark of byte order.
    Raises MemoryLimitError: it is longer than people write, and does not fit in what may be used.
    """
    if (kept := _kept(path)) is not None:
        return kept
    try:
        nbytes = 0 if url_of(path) else os.stat(fetched(path)).st_size  # of a server no long ones are read
        if nbytes > _SMALL:
            MemoryBudget.here().require(f"reading {path}", nbytes * _PARSED)
        return inputs.read_json(path, "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} cannot be read: it is not UTF-8 ({error.reason})") from error
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise DatasetError(f"{path} cannot be read: {why}") from error


def _kept(path: Path) -> dict[str, Any] | None:
    """What a small sidecar says, which several ask for, and of one above many runs each of them.

    None if anything is wrong, for who reads it to say what.
    """
    with suppress(OSError, ValueError):
        if url_of(path) is None and (mark := settled_mark(name := os.fspath(path))) and mark[0] <= _FEW:
            return dict(_parsed(name, mark))
    return None


@lru_cache(maxsize=16)
def _parsed(path: str, mark: tuple[int, ...]) -> dict[str, Any]:
    found = inputs.read_json(path, "utf-8-sig")
    if settled_mark(path) != mark:
        raise ValueError(f"{path} changed while it was read")
    return found


def fetched(path: Path) -> Path:
    """``path``, whose content is there.

    Raises MissingFileError if it is a link to nothing, as of a file that DataLad has not got yet.
    """
    if said := dangling(path):
        raise MissingFileError(f"{path} {said}")
    return path


# --- which they are ------------------------------------------------------------------------------


def sidecars(image: str | Path) -> Iterator[Path]:
    """The JSON files that tell of an image, whether they are there or links to nothing; the nearest first."""
    return _told(_places(image))


def sidecars_and_folders(image: str | Path) -> tuple[list[Path], dict[str, str]]:
    """The same, and what the folders were like before by whose names they are known; none if others may say.

    See :func:`sharedmask.sources.names.state_of`.
    """
    places = _places(image)
    is_known = all(place.is_closed for place in places)
    folders = dict.fromkeys(folder for place in places for folder in place.folders) if is_known else ()
    try:
        states = {folder: state_of(folder) for folder in folders}
    except FileNotFoundError:  # a link to what git-annex has not got yet, for which it has no folder
        states = {}
    return list(_told(places)), states


def asked_together(url: str) -> AbstractContextManager[None]:
    """In the block a server is asked for an image and for what may tell of it at once."""
    (place,) = _places(without_query(url))
    # Other servers list their folders.
    likely = _likely(place.name) if place.name is not None and is_http(url) else ()
    beside = [f"{folder}/{entry}" for folder in place.folders for entry in likely]
    return inputs.asked_together(url, dict.fromkeys([_own(place.path), *beside]), place.folders)


class _Place(NamedTuple):
    """One of the names of an image, and where others of its data set may tell of it."""

    path: str
    name: Name | None
    folders: list[str]

    @property
    def is_closed(self) -> bool:
        """Whether no folder above those can become one of them without a change of their names."""
        if url_of(self.path):
            return False
        return self.name is None or os.path.lexists(os.path.join(self.folders[-1], DESCRIPTION))


def _places(image: str | Path) -> list[_Place]:
    found = []
    for path in _named(os.fspath(image)):
        try:
            found.append(_Place(path, Name.parse(path), _folders(path)))
        except ParameterError:
            found.append(_Place(path, None, [os.path.dirname(path)]))
    return found


def _told(places: Sequence[_Place]) -> Iterator[Path]:
    seen = set[str]()
    for place in places:
        for sidecar in _of(place):
            # Of an image without links in its path no folder above is one.
            is_real = len(places) == 1 and not os.path.islink(sidecar)
            real = sidecar if is_real else os.path.realpath(sidecar)
            if real not in seen:
                seen.add(real)
                yield Path(sidecar)


def own_sidecar(image: Path) -> Path:
    """The JSON file of an image's name, whether it is there or not."""
    return Path(_own(os.fspath(image)))


# What follows is of each of very many runs: names are texts, which cost a tenth of a Path.


def _own(image: str) -> str:
    folder, name = os.path.split(image)
    stem = re.sub(r"\.[a-z]{3}$", "", without_codec(name), flags=re.IGNORECASE)
    return os.path.join(folder, f"{stem}.json")


def _named(image: str) -> list[str]:
    """The names of an image: as it is called, in its folder's place, in its own."""
    if url_of(image):
        return [image]
    path = os.path.abspath(image)
    if platform.is_real(path):
        return [path]
    folder, name = os.path.split(path)
    real = os.path.realpath(path)
    return list(dict.fromkeys((path, os.path.join(os.path.realpath(folder), name), real)))


def _of(place: _Place) -> Iterator[str]:
    own = _own(place.path)
    if inputs.exists(own) if url_of(own) else os.path.lexists(own):
        yield own
    if place.name is not None:
        for folder in place.folders:
            yield from _telling(folder, place.name)


def _folders(image: str) -> list[str]:
    """From an image's own up to the root of its data set: the one that has a description, or subjects."""
    parents, is_remote = list(_parents(image)), url_of(image) is not None
    described = (n for n, one in enumerate(parents) if os.path.lexists(os.path.join(one, DESCRIPTION)))
    subjects = (n + 1 for n, one in enumerate(parents[:-1]) if os.path.basename(one).startswith("sub-"))
    last = next(subjects, 0)  # of names a server need not be asked
    return parents[: (last if is_remote else next(described, last)) + 1]


def _parents(path: str) -> Iterator[str]:
    while (folder := os.path.dirname(path)) != path:
        yield folder
        path = folder


def _telling(folder: str, image: Name) -> list[str]:
    """Those in a folder that tell of ``image``; the one with most entities, the nearest, first."""
    found = []
    with suppress(OSError):  # a folder above may be one that others may not list
        for entry, name in _listed(folder, image):
            if (name.suffix, name.extension) != (image.suffix, ".json"):
                continue
            if all(same(key, image.entities.get(key), value) for key, value in name.entities.items()):
                found.append((len(name.entities), entry))
    return [os.path.join(folder, entry) for _, entry in sorted(found, reverse=True)]


def _listed(folder: str, image: Name) -> Iterable[tuple[str, Name]]:
    """The sidecars in a folder; on a server that lists none, what is likely to be."""
    if url_of(folder) is None:
        return names_in(folder)
    if (listed := inputs.listed(Path(folder))) is None:
        likely = _likely(image).items()
        return [(entry, name) for entry, name in likely if inputs.exists(f"{folder}/{entry}")]
    return [(path.name, name) for path in listed if (name := parsed_name(path.name)) is not None]


def _likely(image: Name) -> dict[str, Name]:
    """Names of sidecars of all subjects that may tell of an image."""
    of_task = {key: value for key, value in image.entities.items() if key not in ("sub", "ses")}
    task_alone = {key: value for key, value in of_task.items() if key == "task"}
    names = [Name(told, image.suffix, ".json") for told in (of_task, task_alone)]
    return {str(name): name for name in names}
