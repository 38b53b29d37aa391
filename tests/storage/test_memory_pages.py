"""The pages of shared memory: all of them taken, of whatever size they are."""

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


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(memory_pages, "_are_quick", True)


@pytest.mark.parametrize("nbytes", SIZES)
@pytest.mark.parametrize("make_large", [platform.make_large, nothing, slowly])
def test_all_pages_are_taken_before_anybody_writes(made, monkeypatch, nbytes, make_large):
    monkeypatch.setattr(platform, "make_large", make_large)

    memory_pages.reserve(made, nbytes)

    facts = os.fstat(made)
    assert facts.st_size == nbytes
    assert nbytes <= facts.st_blocks * 512 < nbytes + mmap.PAGESIZE
    assert not any(os.pread(made, nbytes, 0))


@pytest.mark.parametrize("make_large", [nothing, slowly])
def test_who_got_no_large_page_quickly_asks_for_none_again(made, monkeypatch, make_large):
    asked = []
    monkeypatch.setattr(platform, "make_large", lambda *span: asked.append(span) or make_large(*span))
    monkeypatch.setattr(platform, "large_page", lambda: 2 * 2**20)

    for _ in range(2):
        memory_pages.reserve(made, 16 * 2**20)

    assert len(asked) == 1


def test_a_large_page_is_mapped_where_one_can_begin(made, monkeypatch):
    monkeypatch.setattr(memory_pages, "_SLOW", 600)
    size = platform.large_page()
    if not size or size > 16 * 2**20:
        pytest.skip("this kernel has no large pages that a segment of 17 MiB could have")
    memory_pages.reserve(made, 17 * 2**20)

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

    assert len(_maps()) <= before


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
