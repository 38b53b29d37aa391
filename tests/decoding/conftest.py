"""A run, plain and as gzip; pieces of small files."""

import gzip

import gzip_files
import pytest
from source_files import gz, save


@pytest.fixture
def plain(tmp_path):
    return save(tmp_path / "run.nii")


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    return gzip_files.raw_run(tmp_path_factory.mktemp("decoding"))


@pytest.fixture
def run(raw, tmp_path):
    return gz(tmp_path / "run.nii.gz", gzip.compress(raw, 1))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    gzip_files.small_pieces(monkeypatch)
