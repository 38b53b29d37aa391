"""Fixtures of a small run, of masks on it, and of who does the work: a plugin of all tests."""

import gzip
from functools import partial

import numpy as np
import pytest
from images import SHAPE, bold, random_masks, save

from sharedmask import SharedImage, extract
from sharedmask.sources import loader
from sharedmask.storage import registry

WORKERS = {
    "caller": {},
    "threads": {"n_jobs": 2, "prefer": "threads"},
    "processes": {"n_jobs": 2, "prefer": "processes"},
}


every_worker = pytest.mark.parametrize(
    "workers",
    [
        pytest.param(how, id=who, marks=[pytest.mark.shares] * (who == "processes"))
        for who, how in WORKERS.items()
    ],
)


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "sub-01_bold.nii.gz", bold())


@pytest.fixture
def run(tmp_path):
    return save(tmp_path / "run.nii.gz", bold())


@pytest.fixture
def scaled_path(tmp_path):
    return save(tmp_path / "scaled.nii.gz", bold(), slope=0.25, inter=-100.0)


@pytest.fixture
def not_finite_path(tmp_path):
    data = bold(dtype="f4")
    data[2, 3, 1, 4], data[2, 3, 1, 5], data[0, 0, 0, 0] = np.nan, np.inf, np.nan
    return save(tmp_path / "nan.nii.gz", data)


@pytest.fixture
def shared(path):
    with SharedImage(path) as opened:
        yield opened


@pytest.fixture
def masks():
    return dict(zip("abc", random_masks(3), strict=True))


@pytest.fixture
def brain(masks):
    return np.logical_or.reduce(list(masks.values()))


def owned():
    return [entry.label for entry in registry.entries()]


@pytest.fixture
def labels():
    return (np.arange(210).reshape(SHAPE) % 4 * 10).astype("i2")


def refused(error, call, *args, **parameters):
    with pytest.raises(error) as caught:
        call(*args, **parameters)
    return str(caught.value)


@pytest.fixture(params=["resident", "streamed"])
def mask_parallel(request, path):
    """The two ways to the signals of masks."""
    if request.param == "streamed":
        yield partial(extract, path)
        return
    with SharedImage(path) as opened:
        yield opened.mask_parallel


@pytest.fixture
def large(tmp_path):
    return save(tmp_path / "large.nii.gz", np.zeros((64, 64, 16, 20), "i2"))


@pytest.fixture
def no_segment(monkeypatch):
    monkeypatch.setattr(registry.OwnedSegment, "__init__", None)
    monkeypatch.setattr(loader, "load", None)


LARGE_MASKS = [np.ones((64, 64, 16), bool)] * 4


@pytest.fixture
def truncated(path):
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content)[:-3000])
    return path
