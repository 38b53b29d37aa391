"""Bands of rows: of any size the same rows, within the memory given."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import SHAPE, bold, same_bits, save

from sharedmask.errors import SegmentError
from sharedmask.sources import loader, rechunk
from sharedmask.sources.opening import open_source


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "run.nii.gz", bold())


@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3, st.integers(1, 40)),
    compressed=st.booleans(),
    rows=st.integers(1, 40),
    share=st.floats(0, 1),
    seed=st.integers(0, 9),
)
@settings(max_examples=60)
def test_bands_of_any_size_give_the_same_rows(tmp_path_factory, shape, compressed, rows, share, seed):
    tmp = tmp_path_factory.mktemp("bands")
    source = open_source(save(tmp / ("run.nii.gz" if compressed else "run.nii"), bold(shape, seed=seed)))
    chosen = np.flatnonzero(np.random.default_rng(seed).random(source.n_voxels) <= share)
    voxels = None if share == 1 else np.union1d(chosen, [0])
    n_rows = source.n_voxels if voxels is None else len(voxels)
    expected = np.empty((n_rows, source.n_timepoints), source.dtype)
    finite = loader.load(source, expected, select=voxels)
    found = np.zeros_like(expected)

    def write(start, values):
        found[start : start + len(values)] = values

    bands = rechunk.Bands(n_rows, rows, 0)
    assert rechunk.transpose(source, voxels, bands, write, tmp) == finite
    same_bits(found, expected)
    assert [name for name in os.listdir(tmp) if not name.startswith("run.nii")] == []


def test_bands_fit_the_memory_given(tmp_path):
    source = open_source(save(tmp_path / "run.nii.gz", bold((40, 40, 20, 50), "float32")))
    for memory in (5 * 2**20, 2**23, 2**24):
        bands = rechunk.cut(source, source.n_voxels, memory)
        assert bands.nbytes <= memory
        assert sum(band.stop - band.start for band in bands) == source.n_voxels


def test_a_failure_to_write_is_the_error(path, monkeypatch):
    def failing(*_):
        raise SegmentError("no more")

    bands = rechunk.Bands(int(np.prod(SHAPE)), 20, 0)
    with pytest.raises(SegmentError, match="no more"):
        rechunk.transpose(open_source(path), None, bands, failing, path.parent)
