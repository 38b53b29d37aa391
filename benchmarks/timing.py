"""Times of several things, taken in turns, and what one is of another.

The machine's speed changes while a benchmark runs. So contenders take turns, a ratio is formed
within each round, where both had the same machine, and the median of the rounds is reported.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contender:
    """Something to time; ``right`` judges what it returned, outside of the timing."""

    name: str
    run: Callable[[], Any]
    right: Callable[[Any], bool] = lambda _: True
    before: Callable[[], Any] = lambda: None
    """Called before each run, not timed."""


@dataclass
class Times:
    """Seconds of each round, by contender; and who returned something else than expected."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, reference: str) -> float:
        """Median over the rounds of one's time to the other's.

        Where one was timed once only, of the medians.
        """
        one, other = self.seconds[name], self.seconds[reference]
        if len(one) != len(other):
            return self.median(name) / self.median(reference)
        return statistics.median(a / b for a, b in zip(one, other, strict=True))

    def knows(self, *names: str) -> bool:
        return all(name in self.seconds for name in names)


def take_turns(contenders: Sequence[Contender], n_rounds: int, times: Times, warm_up: bool = True) -> None:
    """Time ``n_rounds`` rounds after one that is not counted; every other round runs backwards."""
    if warm_up:
        for contender in contenders:
            _timed(contender, Times(wrong=times.wrong))
    for number in range(n_rounds):
        for contender in contenders[:: 1 if number % 2 == 0 else -1]:
            _timed(contender, times)
    for name in times.wrong:
        times.seconds.pop(name, None)


def _timed(contender: Contender, times: Times) -> None:
    if contender.name in times.wrong:
        return
    contender.before()
    gc.collect()
    started = time.perf_counter()
    result = contender.run()
    seconds = time.perf_counter() - started
    if contender.right(result):
        times.seconds.setdefault(contender.name, []).append(seconds)
    else:
        times.wrong.add(contender.name)
