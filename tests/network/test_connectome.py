"""Connectomes: every layout read to the same rows, and every file that is none refused."""

import os

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import AFFINE
from networks import LAYOUTS, SHAPE, mask, read, rows_of, series, write, write_split

from sharedmask.errors import ConnectomeError, MissingFileError, SourceChangedError
from sharedmask.network import connectome as connectomes
from sharedmask.network.connectome import Connectome, share_block


@pytest.mark.parametrize("layout", ["as Lacuna writes it", "subjects share chunks"])
def test_a_file_in_several_blocks_gives_the_same_bytes(layout, tmp_path):
    connectome = Connectome.open(write(tmp_path / "c.h5", series(7), **LAYOUTS[layout]))
    whole = read(connectome)
    for n_subjects in (1, 3):
        pieces = read(connectome, n_subjects * connectome.subject_bytes)
        assert all(np.array_equal(a, b) for a, b in zip(whole, pieces, strict=True))


@settings(max_examples=30)
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


def test_the_digest_tells_a_rewritten_connectome(tmp_path):
    path = write(tmp_path / "c.h5", series())
    before = Connectome.open(path).digest
    assert Connectome.open(path).digest == before
    write(path, series(seed=2))
    assert Connectome.open(path).digest != before


def test_what_a_mac_leaves_beside_files_is_passed_over(tmp_path):
    write(tmp_path / "part0.h5", series())
    (tmp_path / "._part0.h5").write_bytes(b"Mac OS X")
    assert len(Connectome.open(tmp_path).files) == 1


@pytest.mark.parametrize("number", [37, 524])
def test_a_file_that_cannot_be_locked_says_what_to_do(tmp_path, monkeypatch, number):
    def refused(*args, **options):
        raise OSError(f"Unable to open file (unable to lock file, errno = {number}, error message = '?')")

    path = write(tmp_path / "part0.h5", series())
    monkeypatch.setattr(h5py, "File", refused)
    with pytest.raises(ConnectomeError, match=r"part0\.h5 cannot be locked.*HDF5_USE_FILE_LOCKING=FALSE"):
        Connectome.open(path)


@pytest.mark.parametrize("change", [os.utime, os.unlink])
def test_a_file_that_changes_is_refused(tmp_path, change):
    path = write(tmp_path / "part0.h5", series())
    connectome = Connectome.open(path)
    change(path)
    with (
        pytest.raises(SourceChangedError, match=r"part0\.h5 changed"),
        share_block(connectome, connectome.blocks(1 << 30)[0]),
    ):
        pass
