"""A coordinator in a process of its own."""

import subprocess
import sys
from contextlib import contextmanager

from children import kill_group

STORES = ["shm", "memfd"]


@contextmanager
def serving(*options, **how):
    """`sharedmask serve` as users start it; ended with SIGTERM unless the test did."""
    child = subprocess.Popen(
        [sys.executable, "-m", "sharedmask", "serve", *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **how,
    )
    try:
        line = child.stdout.readline()
        assert line.startswith("serving"), child.stderr.read()
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
        try:
            child.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            kill_group(child)
            raise
