"""Connectomes: every layout read to the same rows, and every file that is none refused."""

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import AFFINE
from networks import SHAPE, mask, series, write, write_split

from sharedmask.errors import ConnectomeError, DamagedImageError, MissingFileError
from sharedmask.network import connectome as connectomes
from sharedmask.network.connectome import Connectome

LAYOUTS = {
    "as Lacuna writes it": {},
    "one piece": {"chunks": None, "compression": None, "compression_opts": None},
    "plain chunks": {"compression": None, "compression_opts": None},
    "shuffled": {"shuffle": True},
    "checksums": {"fletcher32": True},
    "subjects share chunks": {"chunks": (4, 10, 50)},
    "h5py's own chunks": {"chunks": True},
}


def rows_of(data):
    """Centred rows of length 1, and their lengths, in float64."""
    rows = data.astype("f8").transpose(0, 2, 1)
    rows = rows - rows.mean(axis=2, keepdims=True)
    lengths = np.linalg.norm(rows, axis=2)
    return rows / np.where(lengths > 0, lengths, 1)[..., None], lengths


def read(connectome, most_bytes=2**30, n_threads=2):
    """Rows and lengths of all blocks."""
    parts = []
    for block in connectome.blocks(most_bytes):
        with connectomes.share_block(connectome, block, n_threads) as shared:
            parts.append((np.array(shared.series), np.array(shared.lengths)))
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "f8", "f2", "i2"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_dtype_gives_the_same_rows(layout, dtype, tmp_path):
    data = (series() * 10).astype(dtype)
    path = write(tmp_path / "c.h5", data, **LAYOUTS[layout])
    rows, lengths = read(Connectome.open(path))
    expected, expected_lengths = rows_of(data)
    np.testing.assert_allclose(rows, expected, atol=2e-7)
    np.testing.assert_allclose(lengths, expected_lengths, rtol=1e-6)


@pytest.mark.parametrize("layout", ["as Lacuna writes it", "subjects share chunks"])
def test_a_file_in_several_blocks_gives_the_same_bytes(layout, tmp_path):
    connectome = Connectome.open(write(tmp_path / "c.h5", series(7), **LAYOUTS[layout]))
    whole = read(connectome)
    for n_subjects in (1, 3):
        pieces = read(connectome, n_subjects * connectome.subject_bytes)
        assert all(np.array_equal(a, b) for a, b in zip(whole, pieces, strict=True))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_large_offset_costs_no_precision(dtype, tmp_path):
    data = (series() + 20_000).astype(dtype)
    rows, _ = read(Connectome.open(write(tmp_path / "c.h5", data)))
    np.testing.assert_allclose(rows, rows_of(data)[0], atol=2e-7)


@settings(max_examples=30, deadline=None)
@given(value=st.floats(-1e6, 1e6, width=32), n_timepoints=st.integers(2, 300))
def test_a_constant_voxel_is_zero_and_not_rounding(value, n_timepoints):
    rows = np.full((1, n_timepoints), value, "f4")
    assert connectomes.correlation.standardise(rows) == 0
    assert not rows.any()


def test_blocks_need_no_named_memory(tmp_path, monkeypatch):
    """As in a batch job; sealed memory has no writer left."""
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    connectome = Connectome.open(write(tmp_path / "c.h5", series()))
    with connectomes.share_block(connectome, connectome.blocks(2**30)[0], 2) as shared:
        assert shared.attachment.handle.store == "memfd"
        np.testing.assert_allclose(shared.series, rows_of(series())[0], atol=2e-7)
        assert not shared.series.flags.writeable


def test_subjects_that_were_never_written_are_constant(tmp_path):
    path = write(tmp_path / "c.h5", series())
    with h5py.File(path, "r+") as file:
        shape = file["timeseries"].shape
        del file["timeseries"]
        file.create_dataset("timeseries", shape, "f4", chunks=(1, *shape[1:]), compression="gzip")[1] = 1
    assert not read(Connectome.open(path))[0].any()


def test_positions_do_not_depend_on_the_order_of_mask_indices(tmp_path):
    indices = np.array(np.nonzero(mask()))
    order = np.random.default_rng(4).permutation(indices.shape[1])
    one = Connectome.open(write(tmp_path / "a.h5", series()))
    other = Connectome.open(write(tmp_path / "b.h5", series()[:, :, order], indices=indices[:, order].T))
    numbers = np.sort(one.voxels)[:40]
    assert sorted(one.voxels[one.held(numbers)]) == sorted(other.voxels[other.held(numbers)])
    assert len(one.held(np.flatnonzero(~mask().ravel(order="F")))) == 0


def test_files_of_a_folder_are_read_in_the_order_of_their_names(tmp_path):
    data = series(6)
    connectome = Connectome.open(write_split(tmp_path / "c", data, [1, 3, 2]))
    assert [file.n_subjects for file in connectome.files] == [1, 3, 2]
    np.testing.assert_allclose(read(connectome)[0], rows_of(data)[0], atol=2e-7)


def test_three_voxels_need_the_orientation_said(tmp_path):
    inside = np.zeros(SHAPE, bool)
    indices = np.array([[0, 1, 2], [3, 4, 4], [5, 6, 1]])
    path = write(tmp_path / "c.h5", series(3, n_voxels=3), inside, indices=indices)
    with pytest.raises(ConnectomeError, match=r"\(3, 3\).*coordinates_axis"):
        Connectome.open(path)
    strides = np.cumprod([1, *SHAPE[:2]])
    assert Connectome.open(path, coordinates_axis=0).voxels.tolist() == (strides @ indices).tolist()
    assert Connectome.open(path, coordinates_axis=1).voxels.tolist() == (indices @ strides).tolist()


DIFFERENT = {
    "mask_indices": lambda data: {"data": data, "indices": np.array(np.nonzero(mask()))[:, ::-1]},
    "different grids": lambda data: {"data": data, "affine": AFFINE + np.diag([0.5, 0, 0, 0])},
    "timepoints": lambda data: {"data": data[:, :-1]},
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_files_that_differ_are_refused_by_name(what, tmp_path):
    folder = write_split(tmp_path / "c", series(), [3, 3])
    given = DIFFERENT[what](series(2))
    write(folder / "later.h5", given.pop("data"), **given)
    with pytest.raises(ConnectomeError, match=rf"later\.h5.*{what}|{what}"):
        Connectome.open(folder)


def broken(path, change):
    write(path, series())
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def replace(name, value):
    def change(file):
        del file[name]
        file[name] = value

    return change


WRONG = {
    "it has no timeseries": lambda file: file.__delitem__("timeseries"),
    "it has no mask_affine": lambda file: file.__delitem__("mask_affine"),
    "it has no mask_shape": lambda file: file.attrs.__delitem__("mask_shape"),
    "not numbers of": replace("timeseries", np.ones((3, 4))),
    "are no grid": replace("mask_affine", np.full((4, 4), np.nan)),
    "mask_indices for": replace("mask_indices", np.ones((3, 7), int)),
    "integers of": replace("mask_indices", np.ones((3, int(mask().sum())))),
    "outside of mask_shape": replace("mask_indices", np.full((3, int(mask().sum())), 50)),
    "name a voxel twice": replace("mask_indices", np.ones((3, int(mask().sum())), int)),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_no_connectome_is_refused(message, tmp_path):
    path = broken(tmp_path / "wrong.h5", WRONG[message])
    with pytest.raises(ConnectomeError, match=message) as caught:
        Connectome.open(path)
    assert "wrong.h5" in str(caught.value)


def test_what_is_no_hdf5_or_not_there(tmp_path):
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(ConnectomeError, match=r"text\.h5 cannot be read as HDF5"):
        Connectome.open(tmp_path / "text.h5")
    with pytest.raises(MissingFileError, match="does not exist"):
        Connectome.open(tmp_path / "none.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match=r"holds no \.h5 file"):
        Connectome.open(tmp_path / "empty")


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


def test_the_digest_tells_a_rewritten_connectome(tmp_path):
    path = write(tmp_path / "c.h5", series())
    before = Connectome.open(path).digest
    assert Connectome.open(path).digest == before
    write(path, series(seed=2))
    assert Connectome.open(path).digest != before
