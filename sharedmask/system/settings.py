"""The settings: every knob, its value, and where that came from.

Covers: the knobs, their types, the order in which places are asked, profiles. Does not cover: what
each knob does (the room that reads it), arguments of single calls, which come before all of this.

Asked in this order; the first that has a value wins::

    using(...), the command line > SHAREDMASK_* variables > configuration file > profile > default

The configuration file is TOML with the names below as keys: the one that ``using(config=...)``,
``--config`` or ``SHAREDMASK_CONFIG`` names, else ``sharedmask/config.toml`` in ``$XDG_CONFIG_HOME``
(``~/.config``). A name that is none of these is an error in the file and a warning in the environment,
where module systems and other versions have variables of their own.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from sharedmask.errors import ParameterError, SharedMaskWarning
from sharedmask.records import dataclass
from sharedmask.system import inputs, limits, platform
from sharedmask.system.process import Lock, is_worker
from sharedmask.system.units import parse_bytes

GIB = 2**30
Fingerprint = Literal["stat", "content"]


@dataclass(frozen=True)
class Settings:
    """The knobs; sizes are in bytes, and may be given as ``"8G"``.

    Examples
    --------
    >>> with using(memory_buffer=0.2):
    ...     current().memory_buffer
    0.2
    """

    profile: str | None = None
    """A set of numbers for a kind of machine: see :data:`PROFILES`; ``"auto"`` chooses one by the
    memory of this machine, ``"slurm"`` takes those of the job."""
    memory_limit: int | float | str | None = None
    """What may be used, besides all other limits: bytes, ``"8G"`` or a fraction of the RAM."""
    memory_buffer: float = 0.0
    """Fraction of the limit that stays free after an allocation."""
    max_memory_per_process: int | None = None
    """Private memory of each process at work: sets the size of blocks, then the number of workers."""
    shared_memory: bool = True
    """False: images are held in private memory and workers are threads of the caller."""
    use_disk: bool = True
    """False: an image that does not fit in memory is an error; ``store="auto"`` never takes the disk."""
    disk_threshold: int | None = None
    """Size in the store above which ``store="auto"`` takes the disk; None: what memory allows."""
    spill_dir: Path | None = None
    """Where images and frames on disk are (``SHAREDMASK_TMPDIR``); None: in ``$TMPDIR``, else in /var/tmp."""
    spill_limit: int = 100 * GIB
    """What images on disk may take together; the least recently used go first."""
    keep_disk: bool = True
    """Keep an image on disk for the next run; False: it goes when the image is closed."""
    cleanup_temporary: bool = True
    """False: what was half written when something failed stays, and a warning tells where."""
    monitor: bool = False
    """Sample memory during each operation; see ``MemoryMonitor``."""
    log_memory: bool = False
    """One log line per operation: what it was projected to take, and what is in use after it."""
    cache_dir: Path | None = None
    """Where results are cached; None: nowhere, unless a call says so."""
    cache_limit: int = 50 * GIB
    """What cached results may take together."""
    decoders: Annotated[int, "how many"] | None = None
    """Cores that decode one .nii.gz file that has an index; None: all that may be used, one in a worker."""
    fingerprint: Fingerprint = "stat"
    """How it is known that an image is still the same, by cache, images on disk and journals: by what the
    file system says of the file and a few of its bytes; or by all that it holds, which is read each time, for
    file systems that do not tell when a file changed (no ctime)."""


PROFILES: dict[str, dict[str, Any]] = {
    "small": {"disk_threshold": GIB // 2, "memory_buffer": 0.3, "max_memory_per_process": 4 * GIB},
    "medium": {"disk_threshold": GIB, "memory_buffer": 0.2, "max_memory_per_process": 8 * GIB},
    "large": {"disk_threshold": 2 * GIB, "memory_buffer": 0.15, "max_memory_per_process": 16 * GIB},
}
"""For machines below 16 GiB, up to 64 GiB, and above."""

_SLURM_SHARE = 0.8
_PREFIX = "SHAREDMASK_"
_NAMES = tuple(field.name for field in fields(Settings))
_VARIABLES = {f"{_PREFIX}{name.upper()}": name for name in _NAMES if name != "spill_dir"}
_VARIABLES[f"{_PREFIX}TMPDIR"] = "spill_dir"
_CONFIG = f"{_PREFIX}CONFIG"
_ASKED = (_PREFIX.encode(), b"SLURM_")  # profiles depend on the job
# Read elsewhere: the registry's directory, and what the test suite asks for.
_NOT_SETTINGS = {_CONFIG, *(_PREFIX + name for name in ("DIR", "TEST_DATA", "SLOW_TESTS"))}


# --- values --------------------------------------------------------------------------------------


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ParameterError(f"{value!r} is neither true nor false")
    return value


def _fraction(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ParameterError(f"{value!r} is no fraction from 0 to below 1")
    return float(value)


def _size(value: Any) -> int:
    if not isinstance(value, bool) and value in (0, "0"):
        return 0
    return parse_bytes(_limit(value), "size")


def _limit(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ParameterError(f"{value!r} is no amount of memory")
    parse_bytes(value)
    return value


def _folder(value: Any) -> Path:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ParameterError(f"{value!r} is no directory")
    return Path(value).expanduser()


def _among(*words: str) -> Callable[[Any], str]:
    def checked(value: Any) -> str:
        if value not in words:
            raise ParameterError(f"{value!r} is none of {', '.join(words[:-1])} and {words[-1]}")
        return str(value)

    return checked


def _count(value: Any) -> int:
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ParameterError(f"{value!r} is no number of cores")
    return value


_BY_TYPE: dict[Any, Callable[[Any], Any]] = {
    bool: _flag,
    float: _fraction,
    int: _size,
    int | None: _size,
    Annotated[int, "how many"] | None: _count,
    int | float | str | None: _limit,
    Path | None: _folder,
    str | None: _among(*PROFILES, "auto", "slurm"),
    Fingerprint: _among(*get_args(Fingerprint)),
}
_CHECKS = {field.name: _BY_TYPE[field.type] for field in fields(Settings)}
_FLAGS = {"1": True, "true": True, "yes": True, "on": True}
_FLAGS |= {"0": False, "false": False, "no": False, "off": False}


def _from_text(name: str, text: str) -> Any:
    """What a variable of the environment says, as the type that the knob has elsewhere."""
    if _CHECKS[name] is _flag:
        return _FLAGS.get(text.strip().lower(), text)
    with contextlib.suppress(ValueError):
        return float(text) if _CHECKS[name] is _fraction else text
    return text


def from_texts(texts: Iterable[str]) -> dict[str, Any]:
    """Values of knobs written as ``NAME=VALUE``, by name.

    Raises ParameterError: a text has no ``=``, or its name is that of no setting.
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in _CHECKS:
            raise ParameterError(f"{text!r} sets nothing: write NAME=VALUE with one of {', '.join(_NAMES)}")
        found[name] = _from_text(name, value)
    return found


def _checked(values: Mapping[str, Any], origin: Callable[[str], str]) -> dict[str, tuple[Any, str]]:
    found: dict[str, tuple[Any, str]] = {}
    for name, value in values.items():
        if name not in _CHECKS:
            known = ", ".join(_NAMES)
            raise ParameterError(f"{origin(name)}: there is no setting {name!r}; there are {known}")
        try:
            found[name] = _CHECKS[name](value), origin(name)
        except ParameterError as error:
            raise ParameterError(f"{origin(name)}: {name}: {error}") from error
    return found


# --- places --------------------------------------------------------------------------------------


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    _tell_of_unknown(environ)
    variables = {name: variable for variable, name in _VARIABLES.items()}
    texts = {_VARIABLES[variable]: text for variable, text in environ.items() if variable in _VARIABLES}
    values = {name: _from_text(name, text) for name, text in texts.items()}
    return _checked(values, lambda name: variables[name])


def know_variables(environ: Mapping[str, str]) -> list[str]:
    """Variables that look like settings and are none, each once: nobody is told of them again."""
    ours = {name for name in environ if name.startswith(_PREFIX)}
    new = sorted(ours - set(_VARIABLES) - _NOT_SETTINGS - _known)
    _known.update(new)
    return new


def _tell_of_unknown(environ: Mapping[str, str]) -> None:
    """A warning for each: module systems and other versions have their own."""
    if is_worker():
        return  # a worker, whose parent tells
    for name in know_variables(environ):
        from difflib import get_close_matches

        (nearest,) = get_close_matches(name, _VARIABLES, 1, cutoff=0)
        warnings.warn(
            f"the variable {name} is no setting and changes nothing; the nearest is {nearest}",
            SharedMaskWarning,
            stacklevel=2,
        )


def _from_file(path: str) -> dict[str, tuple[Any, str]]:
    try:
        import tomllib

        values = tomllib.loads(inputs.read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ParameterError(f"the configuration file {path} cannot be read: {error}") from error
    return _checked(values, lambda _: f"the configuration file {path}")


def _from_profile(explicit: Mapping[str, tuple[Any, str]]) -> dict[str, tuple[Any, str]]:
    profile = explicit.get("profile", (None, ""))[0]
    if profile is None:
        return {}
    memory_limit = explicit.get("memory_limit", (None, ""))[0]
    capacity = limits.capacity()
    if memory_limit is not None:
        capacity = min(capacity, parse_bytes(memory_limit))
    tier = "small" if capacity < 16 * GIB else "medium" if capacity <= 64 * GIB else "large"
    values = _from_job(capacity) if profile == "slurm" else PROFILES[tier if profile == "auto" else profile]
    return _checked(values, lambda _: f"profile {profile}")


def _from_job(capacity: int) -> dict[str, Any]:
    """Per process 80 % of its task's part of the job's memory on this node."""
    per_process = int(capacity / limits.slurm_tasks_per_node() * _SLURM_SHARE)
    return {"max_memory_per_process": per_process, "disk_threshold": min(GIB, per_process // 4)}


# --- now -----------------------------------------------------------------------------------------

_lock = Lock()
_given: dict[str, Any] = {}
_resolved: tuple[Any, Settings, dict[str, str]] | None = None
_looked_up: tuple[Mapping[str, Any], Settings, dict[str, str]] | None = None
_variables_seen: tuple[Any, Mapping[str, str], str] = None, {}, ""
_known: set[str] = set()


def current() -> Settings:
    """The settings that hold now.

    Raises ParameterError: a name that is no setting, or a value that makes no sense; naming it and its place.
    """
    return _current()[0]


def origins() -> dict[str, str]:
    """Where the settings that are not default values come from."""
    return _current()[1]


def given() -> dict[str, Any]:
    """What :func:`using` has set, for :func:`adopt` in another process."""
    return dict(_given)


def adopt(values: Mapping[str, Any]) -> None:
    """Set knobs as the process has them for which this one works; if they are so already nothing changes."""
    global _given
    with _lock:
        if values != _given:
            _given = dict(values)


@contextlib.contextmanager
def using(*, config: str | os.PathLike[str] | None = None, **values: Any) -> Iterator[Settings]:
    """Set knobs for this process, as the command line does; None leaves one as it is.

    ``config``: a configuration file, instead of the usual one.
    **values: names and values of :class:`Settings`.
    """
    global _given
    given = {name: value for name, value in {"config": config, **values}.items() if value is not None}
    with _lock:
        before = _given
        _given = {**before, **given}
    try:
        yield current()
    finally:
        with _lock:
            _given = before


@contextlib.contextmanager
def looked_up() -> Iterator[None]:
    """Files and variables are looked at once for all that asks in the block, as many small images do."""
    global _looked_up
    before, _looked_up = _looked_up, (_given, *_current())
    try:
        yield
    finally:
        _looked_up = before


def _current() -> tuple[Settings, dict[str, str]]:
    """Resolved again only when something changed: each request asks."""
    global _resolved
    if (known := _looked_up) is not None and known[0] is _given:
        return known[1:]
    with _lock:
        environ, usual = _environ()
        named = _given.get("config") or environ.get(_CONFIG)
        path = os.path.expanduser(named) if named else usual if os.path.isfile(usual) else None
        key = _given, environ, path, _changed(path)
        if _resolved is None or _resolved[0] != key:
            _resolved = key, *_resolve(environ, path)
        return _resolved[1], _resolved[2]


def _environ() -> tuple[Mapping[str, str], str]:
    """The variables that settings are made of, and the file where usually more are.

    Looked for again if any variable is another one.
    """
    global _variables_seen
    now = getattr(os.environ, "_data", None)  # comparing it takes a fiftieth of going through it
    if now is None or now != _variables_seen[0]:
        every = os.environb if hasattr(os, "environb") else map(os.fsencode, os.environ)
        names = [os.fsdecode(name) for name in every if name.startswith(_ASKED)]
        home = os.environ.get("XDG_CONFIG_HOME", "")
        home = home if os.path.isabs(home) else os.path.expanduser("~/.config")
        usual = os.path.join(home, "sharedmask", "config.toml")
        _variables_seen = dict(now or ()), {name: os.environ[name] for name in names}, usual
    return _variables_seen[1:]


def _changed(path: str | None) -> int:
    with contextlib.suppress(OSError):
        return 0 if path is None else os.stat(path).st_mtime_ns
    return 0


def _resolve(environ: Mapping[str, str], path: str | None) -> tuple[Settings, dict[str, str]]:
    given = {name: value for name, value in _given.items() if name != "config"}
    found = {} if path is None else _from_file(path)
    found |= _from_environment(environ)
    found |= _checked(given, lambda _: "given")
    found = {**_from_profile(found), **found}
    values = {name: value for name, (value, _) in found.items()}
    if not platform.can_share():
        values["shared_memory"] = False  # whoever asks for more is told where it is needed
    return Settings(**values), {name: origin for name, (_, origin) in found.items()}
