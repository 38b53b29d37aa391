"""File systems of fsspec, by the one in memory; buckets are in the contract."""

import random
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from sharedmask.errors import MissingFileError, RemoteError, SourceChangedError
from sharedmask.remote import filesystems
from sharedmask.remote.addresses import absolute
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


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_files_of_one_archive_are_read_beside_each_other(tmp_path, method):
    contents = {f"{place}.bin": CONTENT[place:] for place in range(3)}
    with zipfile.ZipFile(tmp_path / "z.zip", "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    with ThreadPoolExecutor(3) as threads:
        found = threads.map(read, [f"zip://{name}::{tmp_path}/z.zip" for name in contents])
    assert list(found) == list(contents.values())


@pytest.mark.parametrize("form", ["file://{}/a.bin", "file://localhost{}/a.bin", "zip://d/a.bin::{}/z.zip"])
def test_files_of_this_machine(tmp_path, form):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(tmp_path / "a.bin", "d/a.bin")
    assert read(absolute(form.format(tmp_path))) == CONTENT


@pytest.mark.parametrize(
    "url",
    ["ftp://me:secret@127.0.0.1:1/a", "nosuch://me:secret@host/a", "zip://a::ftp://me:secret@127.0.0.1:1/z"],
)
def test_no_secret_is_told(url):
    with pytest.raises(RemoteError) as told:
        read(url)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("configured", "given"),
    [({}, {"anon": True}), ({"endpoint_url": "x"}, {"anon": True}), ({"key": "k"}, {})],
)
def test_who_has_no_account(monkeypatch, tmp_path, configured, given):
    pytest.importorskip("botocore")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setitem(fsspec.config.conf, "s3", configured)
    assert filesystems._options("s3://bucket/a") == given
