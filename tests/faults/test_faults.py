"""What is left when the owner dies in the middle of loading and of masking: nothing, after a gc."""

import gc
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from children import gone, kill_group, python, running
from images import bold, random_masks, save

from sharedmask import SharedImage
from sharedmask.errors import DamagedImageError, SharedMaskError
from sharedmask.sources import loader
from sharedmask.storage.registry import entries, reap

LOADING = """
    import sys, time
    from sharedmask import SharedImage
    from sharedmask.sources import loader as loading

    load = loading.load
    def slow(source, rows, **options):
        load(source, rows, **options)
        print("ready", flush=True)
        time.sleep(60)
    loading.load = slow
    with SharedImage(sys.argv[1]) as bold:
        bold.load()
"""

MASKING = """
    import sys, time
    import numpy as np
    from sharedmask import SharedImage
    from sharedmask.compute import pool

    with SharedImage(sys.argv[1]) as bold:
        mask = np.ones(bold.shape[:3], bool)
        bold.mask_parallel([mask], n_jobs=2, prefer="processes")
        print("ready", *(w.process.pid for w in pool._pools[()]._idle), flush=True)
        bold.map(lambda signals: time.sleep(60), [mask, mask], n_jobs=2)
"""


@pytest.fixture
def run(tmp_path):
    return save(tmp_path / "run.nii.gz", bold())


@pytest.mark.parametrize("script", [LOADING, MASKING], ids=["loading", "masking"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nothing_is_left_after_a_signal(script, number, run, registry_dir, segments_of_this_test):
    with running(script, run) as child:
        time.sleep(0.2)
        workers = [int(pid) for pid in child.said]
        child.send_signal(number)
        child.wait(30)
        assert gone(workers)
        reap()
        assert os.listdir(registry_dir) == []
        assert not segments_of_this_test()


@pytest.mark.parametrize("script", [LOADING, MASKING], ids=["loading", "masking"])
def test_nothing_is_left_after_everything_is_killed_at_once(script, run, registry_dir, segments_of_this_test):
    with running(script, run) as child:
        workers = [int(pid) for pid in child.said]
        kill_group(child)
        assert gone(workers)
        assert segments_of_this_test()
        done = subprocess.run([sys.executable, "-m", "sharedmask", "gc"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert "removed sharedmask-" in done.stdout
        assert not segments_of_this_test()
        assert os.listdir(registry_dir) == []


def test_an_exception_in_the_middle_of_loading_leaves_nothing(tmp_path, registry_dir):
    path = save(tmp_path / "run.nii.gz", bold((9, 9, 9, 300)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 3 // 4])
    with SharedImage(path) as shared:
        for _ in range(2):
            with pytest.raises(DamagedImageError, match=r"run\.nii\.gz is truncated"):
                shared.load()
            assert os.listdir(registry_dir) == []
        assert "not loaded" in repr(shared)


def test_ctrl_c_in_the_middle_of_loading_leaves_nothing(run, registry_dir, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(loader, "load", interrupted)
    with SharedImage(run) as shared, pytest.raises(KeyboardInterrupt):
        shared.load()
    assert os.listdir(registry_dir) == []


def test_an_exception_in_the_middle_of_masking_leaves_the_image_usable(run):
    masks = random_masks(4)

    def fail(key, signals):
        raise RuntimeError("the callback's")

    with SharedImage(run) as shared:
        for prefer in ("threads", "processes"):
            with pytest.raises(RuntimeError, match="the callback's"):
                shared.mask_parallel(masks, n_jobs=2, prefer=prefer, on_result=fail)
            assert len(entries()) == 1
        assert len(shared.mask_parallel(masks)) == 4


def test_outputs_have_no_name_once_they_are_returned(run):
    with SharedImage(run) as shared:
        signals = shared.mask_parallel(random_masks(4), n_jobs=2, prefer="processes")
        assert [entry.label for entry in entries()] == ["run.nii.gz"]
        signals[0][:] = 0  # writable, as any array
        np.testing.assert_array_equal(signals[0], 0)


def test_results_outlive_the_image(run):
    masks = random_masks(3)
    with SharedImage(run) as shared:
        threads = shared.mask_parallel(masks)
        processes = shared.mask_parallel(masks, n_jobs=2, prefer="processes")
        view = shared.array[1:, ::2]
        expected = view.copy()
    gc.collect()
    for one, other in zip(threads, processes, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(view, expected)


def test_a_killed_worker_is_an_error_and_the_next_call_works(run):
    def die(signals):
        os.kill(os.getpid(), signal.SIGKILL)

    masks = random_masks(4)
    with SharedImage(run) as shared:
        with pytest.raises(SharedMaskError, match="killed by SIGKILL"):
            shared.map(die, masks, n_jobs=2)
        assert len(shared.map(np.sum, masks, n_jobs=2)) == 4


def test_no_space_is_an_error_with_numbers_and_nothing_left(run, registry_dir, monkeypatch):
    def full(fd, start, length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with SharedImage(run) as shared, pytest.raises(OSError, match=r"too small: \d+ MiB are needed"):
        shared.load()
    assert os.listdir(registry_dir) == []


def test_an_image_left_open_is_released_at_exit_with_a_warning(run, registry_dir):
    script = f"""
    from sharedmask import SharedImage
    image = SharedImage({str(run)!r}).load()
    """
    done = python(script, env={**os.environ, "PYTHONWARNINGS": "always::ResourceWarning"})
    assert done.returncode == 0
    assert "run.nii.gz was not closed" in done.stderr
    assert os.listdir(registry_dir) == []


def test_a_forked_child_may_use_the_image_and_takes_nothing_with_it(run):
    script = f"""
    import os, sys
    import numpy as np
    from sharedmask import SharedImage
    with SharedImage({str(run)!r}) as image:
        expected = image.frame(3).copy()
        pid = os.fork()
        if pid == 0:
            image.close()
            sys.exit(0)
        os.waitpid(pid, 0)
        np.testing.assert_array_equal(image.frame(3), expected)
        assert len(image.map(np.sum, [np.ones(image.shape[:3], bool)], n_jobs=2)) == 1
    """
    done = python(script)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("prefer", ["threads", "processes"])
def test_many_rounds_hold_descriptors_and_maps_constant(run, prefer):
    def counts():
        gc.collect()
        with open("/proc/self/maps") as maps:
            ours = sum("sharedmask" in line for line in maps)
        return len(os.listdir("/proc/self/fd")), ours

    masks = random_masks(2)

    def round_():
        with SharedImage(run) as shared:
            shared.mask_parallel(masks, n_jobs=2, prefer=prefer)

    round_()
    before = counts()
    for _ in range(60):
        round_()
    assert counts() == before
