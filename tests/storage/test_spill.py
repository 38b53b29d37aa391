"""Files without a name: nothing is left of them, and they count as images on disk do."""

import os

import numpy as np
import pytest
from children import running

from sharedmask.errors import SegmentError
from sharedmask.storage import disk
from sharedmask.storage.mapped_file import FileHandle, attach_file
from sharedmask.storage.spill import Spill
from sharedmask.system import usage
from sharedmask.system.settings import using

MIB = 2**20
GEOMETRY = {"few": ((3, 4), np.dtype("f8")), "frames": ((5, 2 * MIB), np.dtype("u1"))}


@pytest.fixture
def spill():
    made = Spill("frames of run", GEOMETRY, reserve=True)
    yield made
    made.release()


def test_what_is_written_is_read_here_and_elsewhere(spill):
    spill.write("few", 1, np.arange(4.0))
    np.testing.assert_array_equal(spill.array("few"), [[0] * 4, [0, 1, 2, 3], [0] * 4])
    script = """
        import sys
        from sharedmask.storage.mapped_file import FileHandle, attach_file
        print("ready", *attach_file(FileHandle.from_json(sys.argv[1])).array("few")[1])
    """
    with running(script, spill.handle.to_json()) as child:
        assert child.said == ["0.0", "1.0", "2.0", "3.0"]


def test_it_has_no_name_and_goes_with_its_last_view(spill):
    assert os.listdir(disk.directory()) == []
    view = spill.array("few")
    handle = FileHandle.from_json(spill.handle.to_json())
    spill.release()
    assert view.sum() == 0
    del view
    with pytest.raises(Exception, match="cannot be opened"):
        attach_file(handle).array("few")


def test_it_counts_as_on_disk(spill):
    assert 10 * MIB <= usage.of_tree().spilled <= 11 * MIB
    assert 10 * MIB <= usage.nameless_bytes(disk.directory()) <= 11 * MIB
    spill.release()
    assert usage.of_tree().spilled == usage.nameless_bytes(disk.directory()) == 0


@pytest.mark.parametrize("reserve", [True, False])
def test_it_is_held_to_the_limit(reserve):
    with (
        using(spill_limit=10 * MIB),
        pytest.raises(SegmentError, match=r"frames of run takes .* spill_limit"),
    ):
        Spill("frames of run", GEOMETRY, reserve=reserve)
    assert usage.of_tree().spilled == 0


def test_all_that_processes_of_this_user_hold_counts():
    script = """
        import numpy as np, time
        from sharedmask.storage.spill import Spill
        spill = Spill("theirs", {"frames": ((8, 2**20), np.dtype("u1"))}, reserve=True)
        print("ready", flush=True)
        time.sleep(60)
    """
    with using(spill_limit=15 * MIB):
        with running(script) as child:
            with pytest.raises(SegmentError, match="in use there take 8"):
                Spill("mine", GEOMETRY, reserve=True)
            child.kill()
            child.wait()
        Spill("mine", GEOMETRY, reserve=True).release()


def test_without_a_need_only_what_was_written_takes_room():
    spill = Spill("frames of run", GEOMETRY)
    assert usage.of_tree().spilled < MIB
    spill.write("frames", 2, np.ones(2 * MIB, "u1"))
    assert 2 * MIB <= usage.of_tree().spilled < 3 * MIB
    spill.release()
