"""Watching memory: what is counted, phases, thresholds, timelines."""

import logging
import mmap
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from children import python
from images import niimg

from sharedmask import MemoryMonitor, SharedImage
from sharedmask.errors import MemoryLimitError, ParameterError, SharedMaskWarning
from sharedmask.system import monitor, settings

MIB = 2**20


@pytest.fixture(scope="module")
def run():
    """20 MiB."""
    return niimg(np.full((64, 64, 16, 80), 7, "f4"))


@pytest.fixture
def everywhere():
    return [np.ones((64, 64, 16), bool)]


def block(nbytes=40 * MIB):
    """Memory that goes when it is let go of; the allocator may keep or have kept that of an array."""
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    filled = np.frombuffer(mmap.mmap(-1, nbytes, flags=private), "u1")
    filled[:] = 1
    return filled


# ---- phases


def test_peaks_belong_to_their_phases():
    with MemoryMonitor() as watching:
        with watching.phase("large"):
            held = block()
            watching.sample()
            del held
        with watching.phase("small"):
            pass
        with watching.phase("outer"), watching.phase("inner"):
            held = block()
    del held
    assert watching.peaks["large"] - watching.peaks["small"] > 35 * MIB
    # The outer one's last look is later: others may have come or gone with whom we share pages.
    assert 0 <= watching.peaks["outer"] - watching.peaks["inner"] < 5 * MIB
    assert watching.peaks["outer"] <= watching.peak
    assert [phase.label for phase in watching.phases] == ["large", "small", "outer", "inner"]


def test_a_repeated_phase_has_its_highest_peak():
    with MemoryMonitor() as watching:
        for nbytes in (1, 40 * MIB, 1):
            with watching.phase("again"):
                held = block(nbytes)
                watching.sample()
                del held
    assert watching.peaks["again"] == max(phase.peak for phase in watching.phases)


def test_sampling_goes_on_by_itself():
    with MemoryMonitor(interval=0.001) as watching:
        deadline = time.monotonic() + 30
        while len(watching.samples) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(watching.samples) >= 5


@pytest.mark.long
def test_long_timelines_are_thinned(monkeypatch):
    monkeypatch.setattr(monitor, "_MOST_SAMPLES", 10)
    with MemoryMonitor(interval=60) as watching:
        for _ in range(35):
            watching.sample()
    assert len(watching.samples) <= 11
    times = [sample.time for sample in watching.samples]
    assert times == sorted(times)


def test_operations_are_phases_of_an_open_monitor(run, everywhere):
    with MemoryMonitor() as watching, SharedImage(run) as image:
        image.mask_parallel(everywhere)
        image.reduce(everywhere)
        image.map(len, everywhere)
    assert set(watching.peaks) == {"load", "mask", "reduce", "map"}
    image.close()
    assert {phase.label for phase in watching.phases} == {"load", "mask", "reduce", "map"}


def test_another_process_can_be_watched():
    script = "import sys; b = bytearray(50 * 2**20); print('ready', flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child, MemoryMonitor(pid=child.pid) as watching:
        child.stdout.readline()
        held = watching.sample()
        child.stdin.close()
    assert 50 * MIB <= held.held <= 70 * MIB
    assert held.children == {}


# ---- now


def test_a_snapshot():
    with MemoryMonitor() as watching:
        now = watching.snapshot()
    assert 0 < now.process <= now.used <= now.total
    assert now.process_percent == 100 * now.process / now.total
    assert 0 < now.available <= now.total
    assert now.reason


def test_the_report_of_an_image(run, everywhere):
    with SharedImage(run, memory_limit="1G", store="shm") as image:
        assert not image.memory_report().loaded
        image.load()
        report = image.memory_report()
    assert (report.image, report.loaded, report.store) == (image.nbytes, True, "shm")
    assert report.limit == "memory_limit='1G'"
    assert report.available == 2**30 - image.nbytes
    assert report.shared >= image.nbytes
    text = str(report)
    assert "20 MiB in shm (asked for)" in text
    assert "1,004 MiB (memory_limit='1G')" in text


# ---- thresholds


def test_a_target_that_is_passed_is_told_once():
    with (
        pytest.warns(SharedMaskWarning, match="above the target of 1 MiB") as told,
        MemoryMonitor(target="1M") as watching,
    ):
        for label in "ab":
            with watching.phase(label):
                pass
    assert len(told) == 1


def test_a_target_that_is_not_passed_is_not_told():
    with MemoryMonitor(target="1T") as watching, watching.phase("a"):
        pass


def test_nothing_begins_above_the_pause_threshold(run, everywhere):
    with SharedImage(run) as image:
        image.load()
        with (
            MemoryMonitor(pause="1M", patience=0.05, interval=0.01),
            pytest.raises(MemoryLimitError, match=r"masking .* waited for 0\.05 s: .* threshold of 1 MiB"),
        ):
            next(image.iter_masks(everywhere))


@pytest.mark.long
def test_a_batch_begins_once_memory_was_released(run, everywhere):
    ballast = [block(200 * MIB)]
    with SharedImage(run) as image, MemoryMonitor(interval=0.005) as watching:
        image.load()
        watching._pause = watching.sample().held - 100 * MIB
        threading.Timer(0.2, ballast.clear).start()
        (signals,) = dict(image.iter_masks(everywhere)).values()
        assert not ballast
    assert signals.shape == (80, 64 * 64 * 16)


@pytest.mark.parametrize("name", ["target", "pause"])
def test_thresholds_that_are_none(name):
    with pytest.raises(ParameterError, match=f"{name}='much'"):
        MemoryMonitor(**{name: "much"})


# ---- timelines


def test_mprof_reads_the_timeline(tmp_path):
    mprof = pytest.importorskip("mprof")
    script = "import sys; print('ready', flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child, MemoryMonitor() as watching:
        child.stdout.readline()
        with watching.phase("a phase of mine"):
            watching.sample()
        child.stdin.close()
    watching.write(tmp_path / "mem.dat")
    read = mprof.read_mprofile_file(os.fspath(tmp_path / "mem.dat"))
    assert len(read["mem_usage"]) == len(watching.samples)
    assert max(read["mem_usage"]) == pytest.approx(watching.peak / MIB, abs=1e-5)
    assert list(read["func_timestamp"]) == ["a_phase_of_mine"]
    assert str(child.pid) in read["children"]
    assert read["cmd_line"]
    assert os.listdir(tmp_path) == ["mem.dat"]


def test_mprof_draws_the_timeline(tmp_path):
    pytest.importorskip("mprof")
    pytest.importorskip("matplotlib")
    with MemoryMonitor() as watching, watching.phase("work"):
        watching.sample()
    watching.write(tmp_path / "mem.dat")
    command = [sys.executable, "-m", "mprof", "plot", "-o", "mem.png", "mem.dat"]
    environment = {**os.environ, "MPLBACKEND": "agg"}
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60, env=environment)
    assert (tmp_path / "mem.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    script = """
    import sys
    from sharedmask import MemoryMonitor
    with MemoryMonitor() as watching, watching.phase("work"):
        watching.sample()
    for path in sys.argv[1:]:
        watching.picture(path)
    """
    assert python(script, tmp_path / "mem.png", tmp_path / "mem.pdf").returncode == 0
    assert (tmp_path / "mem.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "mem.pdf").read_bytes().startswith(b"%PDF")


# ---- what settings ask for


def test_who_draws_a_timeline_alone_has_no_phases(run, everywhere):
    with MemoryMonitor(operations=False) as watching, SharedImage(run) as image:
        image.reduce(everywhere)
    assert len(watching.samples) >= 2 and not watching.phases


def test_a_line_per_operation(run, everywhere, caplog):
    caplog.set_level(logging.INFO, "sharedmask.monitor")
    with settings.using(log_memory=True), SharedImage(run) as image:
        image.mask_parallel(everywhere)
    lines = [record.message for record in caplog.records if record.name == "sharedmask.monitor"]
    assert [line.split()[0] for line in lines] == ["loading", "masking"]
    assert all("projected" in line and "MiB of it shared" in line for line in lines)


def test_settings_watch_each_operation(run, everywhere, monkeypatch):
    monkeypatch.setattr(monitor, "_peaks", {})
    with settings.using(monitor=True), SharedImage(run) as image:
        image.mask_parallel(everywhere)
        report = image.memory_report()
    assert set(report.peaks) == {"load", "mask"}
    assert "peak, mask" in str(report)
    assert report.peaks["mask"] >= image.nbytes
