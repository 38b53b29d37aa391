"""Progress: how much of a call is done, told to a bar or to the caller's function.

Covers: what callers may give as ``progress``. Does not cover: what counts as done.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator

Progress = bool | Callable[[int, int], None] | None


@contextlib.contextmanager
def progress_to(progress: Progress, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A function that takes how much is done: a bar, the caller's function or nothing."""
    if callable(progress):
        told = progress
        yield lambda done: told(done, total)
    elif progress:
        from tqdm.auto import tqdm

        with tqdm(total=total, unit=unit, leave=False) as bar:
            yield lambda done: bar.update(done - bar.n)
    else:
        yield lambda done: None


@contextlib.contextmanager
def counted(progress: Progress, total: int, unit: str) -> Iterator[Callable[..., None]]:
    """A function that notes one more as done, whatever it is called with."""
    with progress_to(progress, total, unit) as notify:
        done = itertools.count(1)
        yield lambda *_: notify(next(done))
