"""Tasks: images of a study on their way to a worker, and what became of them.

Covers: what travels of an image that the caller prepared, what all images have in common, what travels of
small ones that a worker prepares itself; results, errors, what was complete before. Does not cover: which are
next (``cohort``), where they are worked on (``executors``).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from sharedmask.image.extraction import Extraction
from sharedmask.records import dataclass
from sharedmask.remote.addresses import absolute, named
from sharedmask.storage.segment import Handle
from sharedmask.system import limits, platform, settings
from sharedmask.system.process import cached_property
from sharedmask.workers.failure import Failure, dumps_by_value, loaded_once
from sharedmask.workers.sender import received

Key = Any
_SMALL = 2**20  # bytes of an image
_FREED = 8 * 2**20  # bytes that a worker keeps from one of them to the next
TOGETHER = 16, 128
"""Small images that a worker does whole, one after the other, at least and at most. After the last ones the
disk is waited for."""


@dataclass(frozen=True)
class Task:
    """One image and what is asked of it; what travels to a worker."""

    key: Key
    asked: Extraction
    memory: Any = None
    memory_limit: int | float | str | None = None
    knobs: Mapping[str, Any] = field(default_factory=settings.given)
    """What the caller has set; where the task arrives it holds, too."""
    variant: str | None = None
    """What else its outputs depend on; None if nobody records them."""
    needed: int = 0
    finish: Callable[[Any], Any] | None = None
    """What else is made of the signals, where they are."""
    sent: Handle | None = None
    """Where its regions are, which many images have; None if they travel with it."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ if self.sent is None else self.__dict__ | {"asked": _of(self.asked, None)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.sent is not None:
            self.__dict__["asked"] = _of(self.asked, received(self.sent))
        settings.adopt(self.knobs)

    @property
    def name(self) -> str:
        """Its key in a journal: a path that is seen from everywhere, if the key is one."""
        return absolute(self.key) if self.is_file else named(str(self.key))

    @cached_property
    def is_file(self) -> bool:
        """Whether its key is the path of its image."""
        paths = [file.path for file in self.asked.source.files if not file.is_remote]
        return isinstance(self.key, str | Path) and absolute(self.key) in paths

    @cached_property
    def digest(self) -> str:
        """Of all that its outputs depend on, the image as it lies there now."""
        return "" if self.variant is None else self.asked.digest(self.variant)

    def content(self) -> str:
        """The same wherever the image lies; of one on a server, which would be sent twice, nothing."""
        if self.variant is None or self.asked.source.is_remote:
            return ""
        return self.asked.digest(self.variant, of_content=True)

    @property
    def is_small(self) -> bool:
        """Whether telling a worker of it takes about as long as the work."""
        return self.asked.source.nbytes <= _SMALL

    @property
    def operation(self) -> tuple[str, str, int]:
        """As monitors are told of it."""
        request = self.asked.request
        return request.label, request.operation, self.needed

    def run(self) -> Any:
        """The signals, as :func:`sharedmask.extract` gives them, and what is made of them."""
        signals = self.asked.run(self.memory_limit, self.memory)
        return signals if self.finish is None else self.finish(signals)


def _of(asked: Extraction, regions: Any) -> Extraction:
    return replace(asked, request=replace(asked.request, regions=regions))


def work(task: Task) -> tuple[str, str, Any]:
    """Its digest, that of what its image holds, and what it gives."""
    # Before it is read for its signals: what changes between the two is then done again.
    return task.digest, task.content(), task.run()


@dataclass(frozen=True)
class Whole:
    """Small images that a worker does whole: it prepares them, keeps their signals, records them."""

    images: Mapping[Key, Any]
    packed: bytes
    """See :class:`Apart`."""
    knobs: Mapping[str, Any] = field(default_factory=settings.given)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        settings.adopt(self.knobs)

    is_small = False  # enough go together as it is

    @property
    def operation(self) -> tuple[str, str, int]:
        """As monitors are told of it."""
        return "extract", f"extracting from {len(self.images)} small images", _SMALL

    def run(self) -> "Errors":
        """What went wrong with which."""
        errors = Errors()
        platform.keep_memory(_FREED)
        with settings.looked_up(), limits.looked_up(), _Here() as here:
            extract = loaded_once(self.packed)
            extract(self.images, executor=here, n_jobs=1, on_error=errors.__setitem__, overwrite=True)
        return errors


class Errors(dict[Key, BaseException]):
    """Of some images; they travel."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, ({key: Failure(error) for key, error in self.items()},)


def _arrived(failures: Mapping[Key, Failure]) -> Errors:
    return Errors({key: failure.error for key, failure in failures.items()})


class _Here(Executor):
    """Works on a task when it is given it, if that is small."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **_: Any) -> Future[Any]:
        done, (task,) = Future[Any](), arguments
        try:
            if not task.is_small:
                raise NotDoneHereError
            done.set_result(function(task))
        except Exception as error:
            done.set_exception(error)
        return done


@dataclass(frozen=True)
class Apart:
    """How small images of a study are done whole in a worker.

    ``takes``: of a key: whether it is worth a try.
    ``images``: by key, what a worker is told of an image.
    ``packed``: a function of some of these, :func:`sharedmask.extract_many` of them but for what is given by
    keyword there; each worker makes it once.
    """

    takes: Callable[[Key], bool]
    images: Mapping[Key, Any]
    packed: bytes

    @classmethod
    def of(
        cls, takes: Callable[[Key], bool], images: Mapping[Key, Any], extract: Callable[..., "Study"]
    ) -> "Apart":
        return cls(takes, images, dumps_by_value(extract))

    def whole(self, keys: Sequence[Key]) -> Whole:
        return Whole({key: self.images[key] for key in keys}, self.packed)


class NotDoneHereError(Exception):
    """A worker did not do an image whole: it takes memory that the caller admits, or the worker died."""


def may_be_small(path: str) -> bool:
    """Whether an image is so small as a file of this machine."""
    try:
        return os.path.getsize(path) <= _SMALL
    except OSError:
        return False  # which preparing it tells


@dataclass(frozen=True)
class Study:
    """What became of a study's images.

    Attributes
    ----------
    results : dict
        Key -> signals, in the order of the images; empty if ``on_result`` took them.
    errors : dict
        Key -> the exception that ended it, in that order too.
    complete : list
        Keys of the images that were done now, in order of completion.
    skipped : list
        Keys that were complete before.
    """

    results: dict[Key, Any] = field(default_factory=dict, repr=False)
    errors: dict[Key, Exception] = field(default_factory=dict)
    complete: list[Key] = field(default_factory=list)
    skipped: list[Key] = field(default_factory=list)

    def to_dataframe(self) -> Any:
        """A row for each image: its key, ``complete``, ``skipped`` or ``failed``, and the error."""
        import pandas as pd

        rows = [(key, state, "") for state in ("complete", "skipped") for key in getattr(self, state)]
        failed = [(key, "failed", str(error)) for key, error in self.errors.items()]
        return pd.DataFrame([*rows, *failed], columns=["image", "state", "error"])
