"""One variant in a process of its own, so that its memory is all there is to see.

``python -m benchmarks.child VARIANT N_JOBS N_TIMEPOINTS RUN MASK...``

Who talks to whom::

    child   runs the variant, holds the signals, prints "done"   -> the parent samples until here
    parent  closes the child's input                             -> what follows is not measured
    child   prints one line of JSON: when it began, seconds, peak, digests
"""

import json
import sys
import time
from pathlib import Path

from benchmarks.variants import VARIANTS, digests


def main(name: str, n_jobs: str, n_timepoints: str, run: str, *masks: str) -> None:
    before = {"began": time.time(), "cpu_before": time.process_time()}
    started = time.perf_counter()
    signals = VARIANTS[name](Path(run), [Path(mask) for mask in masks], int(n_jobs))
    seconds = time.perf_counter() - started
    peak = _peak_rss()
    print("done", flush=True)
    sys.stdin.read()
    found = digests(signals, int(n_timepoints))
    said = {**before, "seconds": seconds, "peak_rss": peak, "digests": found}
    print(json.dumps(said), flush=True)


def _peak_rss() -> int:
    """Bytes; of this program alone, where ``ru_maxrss`` starts from the process that started it."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
