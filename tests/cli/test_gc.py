"""``sharedmask gc``."""

import os

import numpy as np
from children import kill_group, running
from command import called, sharedmask
from images import bold, niimg

from sharedmask import SharedImage
from sharedmask.storage.registry import OwnedSegment

GEOMETRY = {"rows": ((3, 5), np.dtype("int16"))}


def test_ls_shows_living_images_and_gc_removes_dead_ones():
    owner = """
    import time, numpy as np
    from sharedmask.storage.registry import OwnedSegment as Owned
    owned = Owned("their.nii.gz", {"rows": ((3, 5), np.dtype("int16"))})
    owned.share({})
    print("ready", flush=True)
    time.sleep(60)
    """
    mine = OwnedSegment("mine.nii.gz", GEOMETRY)
    mine.share({})
    with running(owner) as child:
        shown = sharedmask("ls").stdout
        assert "mine.nii.gz" in shown
        assert str(os.getpid()) in shown
        assert "their.nii.gz" in shown
        kill_group(child)
    assert sharedmask("gc").stdout.startswith("removed sharedmask-")
    shown = sharedmask("ls").stdout
    assert "mine.nii.gz" in shown
    assert "their.nii.gz" not in shown
    mine.release()


def test_rows_on_disk_go_if_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("SHAREDMASK_TMPDIR", str(tmp_path))
    with SharedImage(niimg(bold()), store="disk") as image:
        image.load()
    called("gc")
    assert len(list(tmp_path.rglob("*.rows"))) == 1
    assert called("gc", "--disk").returncode == 0
    assert not list(tmp_path.rglob("*.rows"))
