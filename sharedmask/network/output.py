"""A run of network mapping: lesions in, files out, taken up again where it stopped.

Covers: what is written where and when, which lesions are done, what went wrong with the others.
Does not cover: the maps (``mapper``), options and exit codes (``base``).

In the output folder::

    run.json                        what all maps depend on; another run may not mix with it
    NAME_rmap.nii.gz ...            one file per map
    NAME_summary.json               written last: the lesion is done
    summary.tsv, errors.json        one row per lesion done, one entry per lesion that failed

Lesions go in batches, cut from the list as given. Taken up again, a batch that is not complete is
done again as a whole, so that its products have the same shape and its maps the same bytes.
"""

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from sharedmask.compute.progress import Progress
from sharedmask.errors import ParameterError
from sharedmask.network import batches
from sharedmask.network.mapper import FunctionalNetworkMapper
from sharedmask.network.stat_maps import KEYS, NetworkMaps
from sharedmask.regions.masks import named_masks
from sharedmask.system import process
from sharedmask.system.files import atomic_write

_SETTINGS = "run.json"
_DONE = "_summary.json"
_LEVEL = 1  # of the compression: maps are floats, which hardly compress
_TEMPORARY = re.compile(r"\.(?P<file>.+)\.(?P<pid>\d+)\.tmp")


@dataclass(frozen=True)
class Report:
    """Names of the lesions done now and before, and what was wrong with the others."""

    done: tuple[str, ...]
    skipped: tuple[str, ...]
    errors: Mapping[str, Exception]


def run(
    lesions: Any,
    mapper: FunctionalNetworkMapper,
    out: str | os.PathLike[str],
    *,
    batch_size: int | None = None,
    resume: bool = False,
    progress: Progress = None,
) -> Report:
    """Write the maps of all lesions; each batch's as it ends.

    Parameters
    ----------
    lesions : list, dict or glob pattern of paths
    mapper : FunctionalNetworkMapper
        Fitted.
    out : str or path
        A folder, made if it is not there.
    batch_size : int, optional
        Default: chosen by memory; with ``resume`` that of the run that was interrupted.
    resume : bool
        Leave out lesions whose maps are complete and whose file has not changed.
    progress : bool or callable, optional

    Returns
    -------
    Report

    Raises
    ------
    ParameterError
        To resume, with other settings or another connectome than those of the run in ``out``.
    """
    batches.check_size(batch_size)
    folder, given, errors = Path(out), named_masks(lesions), dict[str, Exception]()
    folder.mkdir(parents=True, exist_ok=True)
    resume = resume and (folder / _SETTINGS).exists()
    with mapper.opened() as run:
        size = _begin(folder, mapper, batch_size, run.batch_size, resume)
        before = _complete(folder, given, resume)
        pending = _pending(given, before, size)
        take = partial(_take, folder, {name: given[name] for name in pending.keys() - before}, errors)
        batches.in_turn(run, pending, size, take, progress)
    _finish(folder, given, errors)
    done = tuple(name for name in given if name not in errors and name not in before)
    return Report(done, tuple(name for name in given if name in before), errors)


def _pending(given: Mapping[str, Any], before: set[str], size: int) -> dict[str, Any]:
    """The lesions of all batches that are not complete."""
    incomplete = (batch for batch in batches.split(given, size) if not before.issuperset(batch))
    return {name: lesion for batch in incomplete for name, lesion in batch.items()}


def _take(
    folder: Path,
    wanted: Mapping[str, Any],
    errors: dict[str, Exception],
    number: int,
    found: dict[str, NetworkMaps | Exception],
) -> None:
    """Write the maps of a batch that are wanted; note what was wrong with the other lesions."""
    for name, maps in found.items():
        if name not in wanted:
            continue
        if isinstance(maps, Exception):
            errors[name] = maps
        else:
            write_maps(folder, maps, wanted[name])


def write_maps(folder: Path, maps: NetworkMaps, lesion: Any) -> None:
    """One compressed file per map, with the same bytes whenever it is written; the summary last."""
    from isal import igzip

    for key in KEYS:
        file = folder / f"{maps.name}_{key}.nii.gz"
        if key not in maps:
            file.unlink(missing_ok=True)  # of another run
            continue
        with atomic_write(file) as temporary:
            temporary.write_bytes(igzip.compress(maps[key].to_bytes(), _LEVEL, mtime=0))
    facts = {"lesion": maps.name, "digest": _digest(lesion), "summary": dict(maps.summary)}
    _write_json(folder / f"{maps.name}{_DONE}", facts)


def _write_json(path: Path, facts: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n")


def _digest(lesion: Any) -> str | None:
    """Of a file's bytes; None for what is no file."""
    if not isinstance(lesion, str | os.PathLike):
        return None
    return blake2b(Path(lesion).expanduser().read_bytes(), digest_size=16).hexdigest()


# --- taking up again -----------------------------------------------------------------------------


def _begin(
    folder: Path, mapper: FunctionalNetworkMapper, asked: int | None, fitting: int, resume: bool
) -> int:
    """Write down what the maps depend on, or compare it; the size of batches."""
    file = folder / _SETTINGS
    settings = {"connectome": mapper.connectome_.digest, **mapper.settings}
    size = asked or fitting
    if resume:
        before = json.loads(file.read_text())
        size = asked or before.pop("batch_size")
        before.pop("batch_size", None)
        changed = [name for name in settings if before.get(name) != settings[name]]
        if changed:
            raise ParameterError(
                f"{folder} holds maps of a run with another {changed[0]}: "
                f"{before.get(changed[0])!r}, now {settings[changed[0]]!r}; give another folder"
            )
    _sweep(folder)
    _write_json(file, {**settings, "batch_size": size})
    return size


def _sweep(folder: Path) -> None:
    """Remove what a run that was killed had not finished writing."""
    for path in folder.glob(".*.tmp"):
        found = _TEMPORARY.fullmatch(path.name)
        if found and _is_ours(found["file"]) and not process.start_time(int(found["pid"])):
            path.unlink(missing_ok=True)


def _is_ours(name: str) -> bool:
    return name.endswith(("map.nii.gz", _DONE)) or name in (_SETTINGS, "errors.json", "summary.tsv")


def _complete(folder: Path, given: Mapping[str, Any], resume: bool) -> set[str]:
    """Lesions whose maps need not be made; the others are not done any more."""
    complete = {name for name, lesion in given.items() if resume and _is_done(folder, name, lesion)}
    for name in given.keys() - complete:
        (folder / f"{name}{_DONE}").unlink(missing_ok=True)
    return complete


def _is_done(folder: Path, name: str, lesion: Any) -> bool:
    with contextlib.suppress(OSError, ValueError):
        before = json.loads((folder / f"{name}{_DONE}").read_text())["digest"]
        return before is not None and bool(before == _digest(lesion))
    return False


# --- what went well, and what did not ------------------------------------------------------------


def _finish(folder: Path, given: Mapping[str, Any], errors: Mapping[str, Exception]) -> None:
    rows = [
        json.loads((folder / f"{name}{_DONE}").read_text())["summary"] | {"lesion": name}
        for name in given
        if name not in errors
    ]
    columns = ["lesion", *(column for column in (rows[0] if rows else ()) if column != "lesion")]
    lines = [columns, *([_cell(row[column]) for column in columns] for row in rows)]
    with atomic_write(folder / "summary.tsv") as temporary:
        temporary.write_text("".join("\t".join(line) + "\n" for line in lines))
    entries = [
        {"lesion": name, "input": str(given[name]), "error": type(error).__name__, "message": str(error)}
        for name, error in errors.items()
    ]
    _write_json(folder / "errors.json", entries)


def _cell(value: Any) -> str:
    return "n/a" if value is None else str(value)
