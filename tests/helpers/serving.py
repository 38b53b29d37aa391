"""A coordinator in a process of its own."""

import json
import struct
import subprocess
from contextlib import contextmanager

from children import kill_group, program

STORES = ["shm", "memfd"]
BODY = json.dumps({"version": 1, "verb": "list"}).encode()


@contextmanager
def serving(*options, **how):
    """`sharedmask serve` as users start it; ended with SIGTERM unless the test did."""
    child = program("serve", *options, **how)
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


def framed(body):
    """A message as it is sent."""
    return struct.pack(">I", len(body)) + body
