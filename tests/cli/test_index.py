"""``sharedmask index``."""

import gzip

import pytest
from command import sharedmask
from source_files import save, signal

pytest.importorskip("rapidgzip")


def test_an_index_of_each_file(tmp_path):
    """What has none is an error that says why."""
    plain = save(tmp_path / "run.nii", signal())
    run = tmp_path / "run.nii.gz"
    run.write_bytes(gzip.compress(plain.read_bytes()))
    done = sharedmask("index", "--beside", str(run), str(plain))
    assert done.stdout == f"{run}.gzi\n" and (tmp_path / "run.nii.gz.gzi").exists()
    assert done.returncode == 65
    assert done.stderr == f"sharedmask: {plain} needs no index: it is no gzip file\n"
