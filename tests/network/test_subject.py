"""Subjects of a connectome: every layout and dtype, damage."""

import h5py
import numpy as np
import pytest
from networks import LAYOUTS, read, rows_of, series, write

from sharedmask.errors import DamagedImageError
from sharedmask.network.connectome import Connectome


@pytest.mark.some(14)
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "f8", "f2", "i2"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_dtype_gives_the_same_rows(layout, dtype, tmp_path):
    data = (series() * 10).astype(dtype)
    path = write(tmp_path / "c.h5", data, **LAYOUTS[layout])
    rows, lengths = read(Connectome.open(path))
    expected, expected_lengths = rows_of(data)
    np.testing.assert_allclose(rows, expected, atol=2e-7)
    np.testing.assert_allclose(lengths, expected_lengths, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_large_offset_costs_no_precision(dtype, tmp_path):
    data = (series() + 20_000).astype(dtype)
    rows, _ = read(Connectome.open(write(tmp_path / "c.h5", data)))
    np.testing.assert_allclose(rows, rows_of(data)[0], atol=2e-7)


def test_subjects_that_were_never_written_are_constant(tmp_path):
    path = write(tmp_path / "c.h5", series())
    with h5py.File(path, "r+") as file:
        shape = file["timeseries"].shape
        del file["timeseries"]
        file.create_dataset("timeseries", shape, "f4", chunks=(1, *shape[1:]), compression="gzip")[1] = 1
    assert not read(Connectome.open(path))[0].any()


@pytest.mark.parametrize("layout", ["as Lacuna writes it", "shuffled"])
def test_damage_names_the_file_and_leaves_nothing(layout, tmp_path):
    path = write(tmp_path / "c.h5", series(), **LAYOUTS[layout])
    with h5py.File(path) as file:
        chunk = file["timeseries"].id.get_chunk_info(2)
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset + chunk.size // 2)
        file.write(bytes(200))
    with pytest.raises(DamagedImageError, match=r"c\.h5"):
        read(Connectome.open(path))
