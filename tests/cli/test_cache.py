"""``sharedmask cache``."""

import os

import pytest
from command import sharedmask
from images import random_masks, save


@pytest.fixture
def place(tmp_path):
    return tmp_path / "cache"


def told(place):
    lines = sharedmask("cache", "stats", "--cache-dir", place).stdout.splitlines()
    return dict(line.rsplit(maxsplit=1) for line in lines)


@pytest.mark.long
def test_the_command_line_keeps_tells_and_clears(run, tmp_path, place):
    save(tmp_path / "roi.nii", random_masks(1)[0].astype("u1"))
    asked = ("extract", run, "--mask", tmp_path / "roi.nii", "-o", "-")
    outputs = {sharedmask(*asked, "--cache-dir", place).stdout for _ in range(2)}
    assert len(outputs) == 1
    assert (told(place)["hits"], told(place)["misses"], told(place)["entries"]) == ("1", "1", "1")
    setting = {**os.environ, "SHAREDMASK_CACHE_DIR": str(place)}
    assert sharedmask(*asked, "--no-cache", env=setting).stdout in outputs
    assert told(place)["hits"] == "1"
    assert sharedmask(*asked, env=setting).stdout in outputs
    assert told(place)["hits"] == "2"
    assert sharedmask("cache", "clear", env=setting).returncode == 0
    assert (told(place)["entries"], told(place)["hits"]) == ("0", "0")


def test_no_cache_to_tell_of_is_wrong_usage():
    done = sharedmask("cache", "stats")
    assert done.returncode == 64
    assert "--cache-dir" in done.stderr
