"""The pages of shared memory: all of them taken, of whatever size they are."""

import errno
import mmap
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from sharedmask.storage import memory_pages
from sharedmask.system import platform

SIZES = (1, 4096, 2 * 2**20, 16 * 2**20, 17 * 2**20 + 5)


def nothing(address, nbytes):
    """A kernel that makes no large pages."""
    return False


def slowly(address, nbytes):
    """One that takes its time."""
    for _ in range(10**6):
        pass
    return True


@pytest.fixture
def made():
    fd = os.memfd_create("pages")
    yield fd
    os.close(fd)


@pytest.mark.parametrize("nbytes", SIZES)
@pytest.mark.parametrize("make_large", [platform.make_large, nothing, slowly])
def test_all_pages_are_taken_before_anybody_writes(made, monkeypatch, nbytes, make_large):
    monkeypatch.setattr(platform, "make_large", make_large)

    memory_pages.reserve(made, nbytes)

    facts = os.fstat(made)
    assert facts.st_size == nbytes
    assert nbytes <= facts.st_blocks * 512 < nbytes + mmap.PAGESIZE
    assert not any(os.pread(made, nbytes, 0))


@pytest.mark.parametrize("call", ["gap", "reserve", "advise", "make_large"])
@pytest.mark.parametrize("error", [errno.ENOMEM, errno.EINVAL, errno.EAGAIN])
def test_large_pages_that_cannot_be_had_are_no_error(made, monkeypatch, call, error):
    """Address space is limited; all memory is locked, which cannot be given back."""
    usual, first = getattr(platform, call), [True]

    def fails_once(*arguments):
        if first.pop() if first else False:
            raise OSError(error, os.strerror(error))
        return usual(*arguments)

    monkeypatch.setattr(platform, call, fails_once)
    if not platform.large_page():
        monkeypatch.setattr(platform, "large_page", lambda: 2**21)

    memory_pages.reserve(made, 17 * 2**20)

    assert not first
    assert os.fstat(made).st_blocks * 512 >= 17 * 2**20


def test_no_call_takes_long_that_a_signal_would_begin_anew(made, monkeypatch):
    spans = []
    monkeypatch.setattr(platform, "make_large", nothing)
    monkeypatch.setattr(platform, "reserve", lambda fd, place, nbytes: spans.append((place, nbytes)))

    memory_pages.reserve(made, 17 * 2**20 + 5)

    in_turn = [span for span in spans if span[1] > 1]
    assert [place for place, _ in in_turn] == [0, *np.cumsum([nbytes for _, nbytes in in_turn])[:-1]]
    assert sum(nbytes for _, nbytes in in_turn) == 17 * 2**20 + 5
    assert max(nbytes for _, nbytes in in_turn) <= 16 * 2**20


@pytest.mark.parametrize(
    ("seconds", "n_asked"),
    [
        ([], 1),
        ([1], 1),
        ([1e-4] * 256, 256),
        (([1e-4] * 40 + [4e-3]) * 4 + [1e-4] * 92, 256),
        ([1e-3] * 256, 6),
    ],
    ids=["none", "slow", "quick", "some slow ones", "all a little slow"],
)
def test_large_pages_are_taken_as_far_as_they_are_quick(made, monkeypatch, seconds, n_asked):
    """``seconds`` of each; then the kernel makes no more."""
    clock, spans = [0.0], []

    def make_large(*span):
        spans.append(span)
        clock[0] += dict(enumerate(seconds, 1)).get(len(spans), 0)
        return len(spans) <= len(seconds)

    monkeypatch.setattr(memory_pages.time, "thread_time", lambda: clock[0])
    monkeypatch.setattr(platform, "make_large", make_large)
    monkeypatch.setattr(platform, "large_page", lambda: 2**16)

    memory_pages.reserve(made, 16 * 2**20)

    assert len(spans) == n_asked
    spans.clear()
    memory_pages.reserve(made, 16 * 2**20)
    assert spans  # each time anew


@pytest.mark.parametrize("lost", [False, True])
def test_a_large_page_is_mapped_where_one_can_begin(made, monkeypatch, lost):
    """Also if what was unmapped by others before has left a gap into which it would fit."""
    monkeypatch.setattr(memory_pages, "_TRIED", 600)
    size = platform.large_page()
    if not size or size > 16 * 2**20:
        pytest.skip("this kernel has no large pages that a segment of 17 MiB could have")
    memory_pages.reserve(made, 17 * 2**20)
    before = [mmap.mmap(-1, 17 * 2**20 + 3 * mmap.PAGESIZE), mmap.mmap(-1, 64 * 2**20)]
    if lost:
        before[0].close()

    mapped = memory_pages.mapped(made, 17 * 2**20)

    assert np.frombuffer(mapped, np.uint8).ctypes.data % size == 0
    mapped[-1] = 7
    assert os.pread(made, 1, 17 * 2**20 - 1) == b"\x07"


def test_what_lay_between_maps_is_given_back(made):
    memory_pages.reserve(made, 17 * 2**20)
    memory_pages.mapped(made, 17 * 2**20).close()
    before = len(_maps())
    for _ in range(20):
        memory_pages.mapped(made, 17 * 2**20).close()

    assert len(_maps()) < before + 20  # others map, too


def test_without_room_for_a_gap_the_map_is_laid_anywhere(made):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    memory_pages.reserve(made, 17 * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (used + 18 * 2**20, hard))
    try:
        mapped = memory_pages.mapped(made, 17 * 2**20)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert len(mapped) == 17 * 2**20


@pytest.mark.parametrize("n", [10, 5 * 2**20])
def test_what_is_populated_keeps_its_values(made, n):
    memory_pages.reserve(made, n * 8)
    array = np.frombuffer(memory_pages.mapped(made, n * 8), np.float64)
    array[:] = 3

    memory_pages.populate(array)

    assert (array == 3).all()


def _maps():
    return Path("/proc/self/maps").read_text().splitlines()
