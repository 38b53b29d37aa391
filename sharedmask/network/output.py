"""A run of network mapping: lesions in, files out, taken up again where it stopped.

Covers: what is written where and when, which lesions are done, what went wrong with the others.
Does not cover: the maps (``mapper``), options and exit codes (``cli.base``).

In the output folder::

    run.json                        what all maps depend on; other settings may not mix with it
    NAME_rmap.nii.gz ...            one file per map
    NAME_summary.json, summary.tsv  numbers of one lesion; of all that are done, a row each
    .sharedmask/complete.jsonl      the journal of lesions whose files are complete
    .sharedmask/failed/             one file per lesion that failed

Lesions go in batches, cut from the list as given. Taken up again, a batch that is not complete is
done again as a whole, so that its products have the same shape and its maps the same bytes.
"""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

from sharedmask.compute.journal import PRIVATE, Entry, Failures, Journal
from sharedmask.compute.progress import Progress
from sharedmask.errors import ParameterError
from sharedmask.network import batches
from sharedmask.network.mapper import FunctionalNetworkMapper
from sharedmask.network.stat_maps import KEYS, NetworkMaps
from sharedmask.records import dataclass
from sharedmask.regions.masks import named_masks
from sharedmask.regions.naming import members
from sharedmask.system.files import atomic_write, file_name, readable, write_json, write_text
from sharedmask.system.inputs import opened_regular, read_json

_SETTINGS = "run.json"
_SUMMARY = "_summary.json"
_TABLE = "summary.tsv"
_JOURNAL = "complete.jsonl"
_LEVEL = 1  # of the compression: maps are floats, which hardly compress


@dataclass(frozen=True)
class MappingReport:
    """Names of the lesions mapped now and before, and what was wrong with the others."""

    complete: tuple[str, ...]
    skipped: tuple[str, ...]
    errors: Mapping[str, Exception]


def map_to(
    lesions: Any,
    mapper: FunctionalNetworkMapper,
    out: str | os.PathLike[str],
    *,
    batch_size: int | None = None,
    resume: bool = False,
    progress: Progress = None,
) -> MappingReport:
    """Write the maps of all lesions; each batch's as it ends.

    ``mapper``: fitted.
    ``out``: a folder, made if it is not there.
    ``batch_size``: by default chosen by memory; with ``resume`` that of the run that was interrupted.
    ``resume``: leave out lesions whose maps are complete and whose file has not changed.

    Raises ParameterError: to resume, with other settings or another connectome than those of the run in
    ``out``.
    """
    batches.check_size(batch_size)
    folder, named = Path(out).expanduser(), named_masks(lesions)
    given = dict(zip(members(named), named.values(), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    resume = resume and (folder / _SETTINGS).exists()
    with mapper.opened() as session:
        settings = {"connectome": mapper.connectome_.digest, **mapper.settings}
        size = _begin(folder, settings, batch_size, session.batch_size, resume)
        records = _Records.open(folder, given, settings)
        if not resume:
            records.clear()
        before = records.complete()
        pending = _pending(given, before, size)
        take = partial(_take, records, pending.keys() - before)
        batches.in_turn(session, pending, size, take, progress)
    errors = records.errors
    _write_table(folder, {name: lesion for name, lesion in given.items() if name not in errors})
    done = tuple(name for name in given if name not in errors and name not in before)
    return MappingReport(done, tuple(name for name in given if name in before), errors)


def _pending(given: Mapping[str, Any], before: set[str], size: int) -> dict[str, Any]:
    """The lesions of all batches that are not complete."""
    incomplete = (batch for batch in batches.split(given, size) if not before.issuperset(batch))
    return {name: lesion for batch in incomplete for name, lesion in batch.items()}


def _take(
    records: "_Records", wanted: Collection[str], number: int, found: dict[str, NetworkMaps | Exception]
) -> None:
    """Write the maps of a batch that are wanted; note what was wrong with the other lesions."""
    for name, maps in found.items():
        if name not in wanted:
            continue
        if isinstance(maps, Exception):
            records.fail(name, maps)
        else:
            records.keep(name, write_maps(records.folder, maps))


def write_maps(folder: Path, maps: NetworkMaps) -> list[Path]:
    """One compressed file per map, with the same bytes whenever it is written, and the summary."""
    from isal import igzip

    written = []
    for key in KEYS:
        file = folder / file_name(f"{maps.name}_{key}.nii.gz")
        if key not in maps:
            file.unlink(missing_ok=True)  # made with other settings
            continue
        with atomic_write(file) as temporary:
            temporary.write_bytes(igzip.compress(maps[key].to_bytes(), _LEVEL, mtime=0))
        written.append(file)
    summary = _summary_of(folder, maps.name)
    write_json(summary, {"lesion": maps.name, "summary": dict(maps.summary)})
    return [*written, summary]


# --- taking up again -----------------------------------------------------------------------------


def _begin(folder: Path, settings: Mapping[str, Any], asked: int | None, fitting: int, resume: bool) -> int:
    """Write down what the maps depend on, or compare it; the size of batches."""
    file = folder / _SETTINGS
    size = asked or fitting
    if resume:
        before = _read(file)
        size = asked or before["batch_size"]
        changed = [name for name in settings if before.get(name) != settings[name]]
        if changed:
            raise ParameterError(
                f"{folder} holds maps of a run with another {changed[0]}: "
                f"{before.get(changed[0])!r}, now {settings[changed[0]]!r}; give another folder"
            )
    write_json(file, {**settings, "batch_size": size})
    return size


def _read(file: Path) -> dict[str, Any]:
    """What a file of this folder says."""
    try:
        return read_json(file)
    except (OSError, ValueError) as error:
        raise ParameterError(f"{file} cannot be read, remove it to begin anew: {error}") from error


@dataclass(frozen=True)
class _Records:
    """Which lesions are complete, and which failed."""

    folder: Path
    digests: Mapping[str, str | None]
    """Of each lesion's file and all that its maps depend on; None: it is not a file that can be read."""
    journal: Journal
    failures: Failures
    errors: dict[str, Exception] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, lesions: Mapping[str, Any], settings: Mapping[str, Any]) -> "_Records":
        private = folder / PRIVATE
        digests = {name: _digest(lesion, settings) for name, lesion in lesions.items()}
        return cls(folder, digests, Journal(private / _JOURNAL), Failures(private / "failed"))

    def clear(self) -> None:
        """Nothing is complete, nothing failed."""
        self.journal.path.unlink(missing_ok=True)
        self.journal.forget()
        for name in self.failures.all():
            self.failures.remove(name)

    def complete(self) -> set[str]:
        """Lesions whose maps need not be made; the summaries of the others hold no more."""
        done = {name for name, digest in self.digests.items() if digest and self.journal.has(name, digest)}
        for name in self.digests.keys() - done:
            _summary_of(self.folder, name).unlink(missing_ok=True)
        return done

    def keep(self, name: str, files: Sequence[Path]) -> None:
        digest = self.digests[name]
        if digest is not None:
            self.journal.add(Entry(name, digest, tuple(map(str, files))))
        self.failures.remove(name)

    def fail(self, name: str, error: Exception) -> None:
        self.errors[name] = error
        self.failures.add(name, error)


def _digest(lesion: Any, settings: Mapping[str, Any]) -> str | None:
    if not isinstance(lesion, str | os.PathLike):
        return None
    digest = blake2b(repr(sorted(settings.items())).encode(), digest_size=16)
    try:
        with opened_regular(Path(lesion).expanduser()) as file:
            digest.update(file_digest(file, blake2b).digest())
    except OSError:
        return None  # what is wrong with it is found when it is read
    return digest.hexdigest()


def _summary_of(folder: Path, name: str) -> Path:
    return folder / file_name(f"{name}{_SUMMARY}")


def _write_table(folder: Path, lesions: Mapping[str, Any]) -> None:
    rows = [
        {"lesion": name, **_read(_summary_of(folder, name))["summary"], "file": _file(lesion)}
        for name, lesion in lesions.items()
    ]
    header = list(rows[0]) if rows else ["lesion"]
    lines = [header, *([_cell(row[column]) for column in header] for row in rows)]
    write_text(folder / _TABLE, ("\t".join(line) + "\n" for line in lines))


def _file(lesion: Any) -> str | None:
    """The absolute path of a lesion, as the table has it; None for an image in memory."""
    given = lesion.get_filename() if hasattr(lesion, "get_filename") else lesion
    if not isinstance(given, str | os.PathLike):
        return None
    return readable(os.path.abspath(os.path.expanduser(given)))


def _cell(value: Any) -> str:
    if value is None:
        return "n/a"
    return re.sub(r"[\t\r\n]", lambda found: repr(found[0])[1:-1], str(value))
