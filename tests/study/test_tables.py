"""Files of results: what is in them."""

import io
import os
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pandas as pd
import pytest

from sharedmask.errors import ParameterError
from sharedmask.study.tables import series_writer, write_series, write_table


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_tables_read_back_bit_for_bit(tmp_path, dtype):
    signals = np.random.default_rng(0).normal(1000, 50, (12, 3)).astype(dtype)
    write_table(tmp_path / "out.tsv", signals, ["a", "b\tc", "d"])
    table = pd.read_csv(tmp_path / "out.tsv", sep="\t")
    assert list(table) == ["a", "b c", "d"]
    np.testing.assert_array_equal(table.to_numpy().astype(dtype), signals)


def test_missing_values_are_na(tmp_path):
    write_table(tmp_path / "out.tsv", np.array([[1.0, np.nan]]), ["a", "b"])
    assert (tmp_path / "out.tsv").read_text() == "a\tb\n1.0\tn/a\n"


@pytest.mark.parametrize("n_rows", [1, 127, 128, 129, 300])
def test_cells_are_as_python_writes_them(tmp_path, n_rows):
    odd = [0.0, -0.0, 1e-5, -3e-7, 1e300, np.inf, -np.inf, np.nan, 1e-4, 123456789.125, 1e16, 1e22, 5e-324]
    table = np.resize(np.array(odd), (n_rows, 5))
    write_table(tmp_path / "out.tsv", table, list("abcde"))
    said = (tmp_path / "out.tsv").read_text().splitlines()[1:]
    assert said == ["\t".join("n/a" if v != v else repr(v) for v in row) for row in table.tolist()]


def test_one_volume_is_one_row(tmp_path):
    write_table(tmp_path / "out.tsv", np.array([1.5, 2.5]), ["a", "b"])
    assert (tmp_path / "out.tsv").read_text() == "a\tb\n1.5\t2.5\n"


def test_a_dash_is_standard_output(capsys):
    write_table("-", np.array([[1.5]]), ["a"])
    assert capsys.readouterr().out == "a\n1.5\n"


def read_npz(path):
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def read_h5(path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path) as file:
        return {name: file[name][:] for name in file}


@pytest.mark.parametrize(("name", "read"), [("out.npz", read_npz), ("out.h5", read_h5)])
def test_series_read_back(tmp_path, name, read):
    series = {
        "left": np.arange(6.0).reshape(2, 3).T,
        "file": np.arange(4, dtype="f4").reshape(1, 4),
        "a/b": np.arange(3),
    }
    write_series(tmp_path / name, series)
    found = read(tmp_path / name)
    assert set(found) == {"left", "file", "a_b"}
    for key, array in series.items():
        np.testing.assert_array_equal(found[key.replace("/", "_")], array)
        assert found[key.replace("/", "_")].dtype == array.dtype


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(ParameterError, match=r"out\.csv: .*\.npz, \.h5"):
        write_series(tmp_path / "out.csv", {"a": np.zeros((2, 2))})


@pytest.mark.parametrize("name", ["out.npz", "out.h5"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_archives_go_to_what_is_no_regular_file(name, kind, tmp_path):
    """Their writers go back in the file, which a pipe cannot."""
    path, series = tmp_path / name, {"a": np.arange(6.0).reshape(3, 2)}
    if kind == "device":
        path.symlink_to("/dev/null")
        write_series(path, series)
        assert path.is_symlink() and os.stat("/dev/null").st_size == 0
        return
    os.mkfifo(path)
    begun = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # who writes finds a reader
    with ThreadPoolExecutor(1) as reader:
        passed = reader.submit(path.read_bytes)
        write_series(path, series)
        written = io.BytesIO(passed.result(60))
    os.close(begun)
    with np.load(written) if name.endswith("npz") else h5py.File(written) as read:
        np.testing.assert_array_equal(read["a"][:], series["a"])


def test_numbers_are_written_as_python_writes_them(tmp_path):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**64, 4000, dtype=np.uint64).view(np.float64)
    powers = [
        sign * 10.0**power * near for power in range(-12, 24) for sign in (1, -1) for near in (1, 1.5, 0.99)
    ]
    values = np.concatenate([bits, powers, rng.normal(size=4000), [0.0, -0.0, np.inf, -np.inf, 5e-324]])
    write_table(tmp_path / "out.tsv", values[:, None], ["a"])
    expected = ["n/a" if value != value else repr(value) for value in values.tolist()]
    assert (tmp_path / "out.tsv").read_text().split("\n")[1:-1] == expected
    write_table(tmp_path / "wide.tsv", values[::-1].reshape(1, -1), list(map(str, range(len(values)))))
    assert (tmp_path / "wide.tsv").read_text().split("\n")[1].split("\t") == expected[::-1]


@pytest.mark.parametrize("name", ["a.dtseries.nii", "a.func.gii", "a.ptseries.nii.gz"])
def test_an_ending_that_is_not_written_is_refused_with_all_that_are(name):
    with pytest.raises(ParameterError, match=rf"{name}: .*\.h5.*\.tsv.*\.ptseries\.nii, \.pconn\.nii"):
        series_writer(name)
