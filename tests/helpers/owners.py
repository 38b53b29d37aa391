"""An owner of a segment in a process of its own, and the oracle of what it left."""

import contextlib
import os
import secrets
import time

import numpy as np
from segments import exists

from sharedmask.storage.segment import Handle

STORES = ["shm", "memfd"]


GEOMETRY = {"rows": ((3, 5), np.dtype("int16"))}


ROWS = np.full((3, 5), 7)


OWNER = """
    import gc, os, signal, sys, time
    import numpy as np
    from multiprocessing import resource_tracker
    from sharedmask.storage.registry import OwnedSegment as Owned, entries, reap
    from sharedmask.storage.segment import Handle, attach
    store = sys.argv[1]
    owned = Owned("run.nii.gz", {"rows": ((3, 5), np.dtype("int16"))}, store)
    owned.segment.array("rows")[:] = 7
    handle = owned.share({})
    tracker = resource_tracker._resource_tracker._pid or 0
    print("ready", handle.to_json().replace(" ", ""), tracker, flush=True)
"""


def links(name):
    """Maps and descriptors of any process that lead to the segment."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/maps") as maps:
                found += [(pid, "map") for line in maps if name in line]
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    found += [(pid, fd)] * (name in os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


def assert_no_leak(registry_dir, name):
    """The oracle: no record, no name, and no process that holds the bytes."""
    assert os.listdir(registry_dir) == []
    assert not exists(name)
    deadline = time.monotonic() + 60
    while (found := links(name)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found == []


def handle_of(child):
    return Handle.from_json(child.said[0])


TOKEN = secrets.token_hex(16)  # sessions of tests may run beside each other
WITH_VOXELS = {**GEOMETRY, "voxels": ((3,), np.dtype(np.intp))}
