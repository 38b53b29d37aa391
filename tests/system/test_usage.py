"""What is held: private pages by process, shared memory once, files of images apart."""

import subprocess
import sys

import numpy as np
import pytest
from images import niimg

from sharedmask import FrameDataset, MemoryMonitor, SharedImage
from sharedmask.system import usage

MIB = 2**20


@pytest.fixture(scope="module")
def run():
    """20 MiB."""
    return niimg(np.full((64, 64, 16, 80), 7, "f4"))


@pytest.fixture
def everywhere():
    return [np.ones((64, 64, 16), bool)]


def test_shared_memory_counts_once_whoever_maps_it(run, everywhere):
    before = usage.of_tree()
    with SharedImage(run) as image:
        image.map(len, everywhere, n_jobs=2)
        loaded = usage.of_tree()
    assert len(loaded.private) > 2
    assert 20 * MIB <= loaded.shared - before.shared <= 21 * MIB


def test_reserved_memory_counts_before_it_is_touched():
    with MemoryMonitor() as watching:
        from sharedmask.storage.registry import OwnedSegment as Owned

        owned = Owned("reserved", {"rows": ((1, 30 * MIB), np.dtype("u1"))})
        try:
            assert watching.sample().shared >= 30 * MIB
        finally:
            owned.release()


def test_a_child_counts_and_a_mapped_program_does_not():
    script = "import sys; b = bytearray(50 * 2**20); print('ready', flush=True); sys.stdin.read()"
    before = usage.of_tree()
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        child.stdout.readline()
        now = usage.of_tree()
        child.stdin.close()
    assert 50 * MIB <= now.private[child.pid] <= 60 * MIB
    assert now.held - before.held < 65 * MIB
    assert now.total - now.held == now.files > 0


def test_a_process_that_is_gone_holds_nothing():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert usage.of_tree(child.pid) == usage.Usage({}, 0, 0, 0)


def test_images_on_disk_are_told_apart(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SHAREDMASK_TMPDIR", str(tmp_path))
    with SharedImage(run, store="disk") as image:
        image.load()
        now = usage.of_tree()
        assert 20 * MIB <= now.spilled <= 21 * MIB
        assert now.shared < MIB
    assert usage.of_tree().spilled == 0


def test_frames_on_disk_are_told_apart(run):
    with FrameDataset(run, store="disk"):
        assert 20 * MIB <= usage.of_tree().spilled <= 21 * MIB
    assert usage.of_tree().spilled == 0
