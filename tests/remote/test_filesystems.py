"""File systems of fsspec, by the one in memory; buckets are in the contract."""

import random
from collections import Counter

import pytest

from sharedmask.errors import MissingFileError, RemoteError, SourceChangedError
from sharedmask.remote.objects import RemoteFile, exists, listed, look

fsspec = pytest.importorskip("fsspec")
CONTENT = random.Random(5).randbytes(5_000_000)
URL = "memory://data/a.bin"


@pytest.fixture
def files():
    files = fsspec.filesystem("memory")
    files.pipe("/data/a.bin", CONTENT)
    yield files
    files.store.clear()


def read(url):
    with RemoteFile(url) as file:
        return file.readall()


def test_bytes_are_the_objects(files):
    assert read(URL) == CONTENT
    assert exists(URL)
    assert listed("memory://data") == ("a.bin",)


def test_what_is_not_there(files):
    with pytest.raises(MissingFileError, match="memory://data/b does not exist"):
        read("memory://data/b")
    with pytest.raises(RemoteError, match="is a directory"):
        read("memory://data")
    with pytest.raises(RemoteError, match=r"sharedmask\[remote\]"):
        read("nosuch://data")


def test_another_object_in_its_place(files):
    look(URL)
    files.pipe("/data/a.bin", CONTENT[::-1] + b"longer")
    with pytest.raises(SourceChangedError):
        read(URL)


def test_failures_pass_by(files, monkeypatch):
    fetch, asked = type(files).cat_file, Counter()

    def failing(self, path, start=None, end=None, **options):
        asked[start] += 1
        if asked[start] < 4:
            raise (OSError("busy"), ConnectionError("cut"), TimeoutError())[asked[start] - 1]
        return fetch(self, path, start, end, **options)

    monkeypatch.setattr(type(files), "cat_file", failing)
    assert read(URL) == CONTENT


def test_failures_that_stay(files, monkeypatch):
    def refused(self, path, start=None, end=None, **options):
        raise PermissionError("no rights to it")

    look(URL)
    monkeypatch.setattr(type(files), "cat_file", refused)
    with pytest.raises(RemoteError, match=r"a\.bin cannot be read: no rights to it"):
        read(URL)


def test_what_is_read_no_further_leaves_nothing(files):
    with RemoteFile(URL) as file:
        assert file.read(65536) == CONTENT[:65536]
        assert file.read(10) == CONTENT[65536:65546]
