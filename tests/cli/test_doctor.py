"""``sharedmask doctor``."""

import gc
import os

from command import sharedmask

STORES = ["shm", "memfd"]


def test_doctor_finds_both_stores_working(registry_dir):
    done = sharedmask("doctor")
    assert done.returncode == 0, done.stderr
    for store in STORES:
        assert f"ok  attaching from another process ({store}): the same numbers arrive" in done.stdout
    assert os.listdir(registry_dir) == []
    gc.collect()
