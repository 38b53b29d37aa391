"""From volumes to rows, with images made of an array."""

import threading
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharedmask.errors import ParameterError
from sharedmask.sources import loader
from sharedmask.sources.values import Conversion
from sharedmask.sources.volumes import VolumesReader

LEAST, MOST = loader._BLOCK_VOLUMES
LENGTHS = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128, 129, 200]


class Volumes(VolumesReader):
    """An image in memory, (n_timepoints, n_voxels), that can fail at a volume."""

    reads_ahead = False
    reading_bytes = 0

    def __init__(self, data, fails_at=None, error=None):
        self.data, self.fails_at, self.error = data, fails_at, error
        self.n_timepoints, self.n_voxels = data.shape
        self.dtype = data.dtype
        self.position, self.opened, self.closed = 0, 0, 0

    @contextmanager
    def volumes(self):
        self.opened += 1
        if self.fails_at == "open":
            raise self.error
        try:
            yield self
        finally:
            self.closed += 1
        if self.fails_at == "close":
            raise self.error

    def readinto(self, out):
        rows = out.reshape(-1, self.n_voxels)
        for row in rows:
            if self.position == self.fails_at:
                raise self.error
            row[...] = self.data[self.position]
            self.position += 1


def random_volumes(n_timepoints=70, n_voxels=600, dtype="i2", **how):
    data = np.random.default_rng(n_timepoints).normal(0, 1000, (n_timepoints, n_voxels))
    return Volumes(data.astype(dtype), **how)


def loaded(source, select=None, **how):
    n_rows = source.n_voxels if select is None else len(select)
    rows = np.empty((n_rows, source.n_timepoints), how.pop("dtype", source.dtype))
    finite = loader.load(source, rows, select=select, **how)
    return rows, finite


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("sharedmask-")]


@pytest.fixture(autouse=True)
def no_thread_left():
    yield
    assert threads() == []


@pytest.fixture(autouse=True)
def ahead(monkeypatch):
    """However small they are here, images are decoded in a thread."""
    monkeypatch.setattr(loader, "_SMALL", 0)


@pytest.mark.parametrize(
    ("why", "select"),
    [
        ("small", None),
        ("small", np.array([4, 0, 4])),
        ("one core", None),
        ("one core", np.array([4, 0, 4])),
    ],
)
def test_decoded_without_a_thread_where_it_would_not_help(why, select, monkeypatch):
    if why == "small":
        monkeypatch.setattr(loader, "_SMALL", 2**20)
    else:
        monkeypatch.setattr(loader, "n_cpus", lambda: 1)
    monkeypatch.setattr(threading.Thread, "start", None)  # which would be called
    source = random_volumes(40, 6)
    with loader.blocks(source, select, 16) as blocks:
        found = np.concatenate([block.copy() for _, block in blocks])
    np.testing.assert_array_equal(found, source.data if select is None else source.data[:, select])


@pytest.mark.parametrize("reads_ahead", [True, False])
@pytest.mark.parametrize("select", [None, np.array([4, 0, 4]), np.arange(0, 200, 3)])
@pytest.mark.parametrize("step", [1, 7, 16, 40])
def test_blocks_have_the_voxels_asked_for_whoever_picks_them(reads_ahead, select, step, monkeypatch):
    monkeypatch.setattr(Volumes, "reads_ahead", reads_ahead)
    monkeypatch.setattr(loader, "n_cpus", lambda: 2)
    source = random_volumes(40)
    with loader.blocks(source, select, step) as blocks:
        found = [(number, block.copy()) for number, block in blocks]
    assert [number for number, _ in found] == list(range(0, 40, step))
    picked = source.data if select is None else source.data[:, select]
    np.testing.assert_array_equal(np.concatenate([block for _, block in found]), picked)


@pytest.mark.parametrize("n_timepoints", LENGTHS)
@pytest.mark.parametrize("n_threads", [1, 3])
def test_rows_are_the_series_of_voxels(n_timepoints, n_threads):
    source = random_volumes(n_timepoints)
    rows, _ = loaded(source, n_threads=n_threads)
    np.testing.assert_array_equal(rows, source.data.T)


@pytest.mark.parametrize("n_timepoints", LENGTHS)
def test_rows_of_a_large_image_come_in_small_blocks(n_timepoints, monkeypatch):
    monkeypatch.setattr(loader, "_BLOCK_BYTES", 1)
    source = random_volumes(n_timepoints)
    rows, _ = loaded(source)
    np.testing.assert_array_equal(rows, source.data.T)


@pytest.mark.parametrize("n_voxels", [1, 2, 511, 512, 513, 1024, 1100])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_tiles_are_all_voxels(n_voxels, n_threads):
    source = random_volumes(20, n_voxels)
    rows, _ = loaded(source, n_threads=n_threads)
    np.testing.assert_array_equal(rows, source.data.T)


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "i8", "f2", "f4", "f8", "f16"])
@pytest.mark.parametrize("n_timepoints", [1, 7, 70])
def test_every_dtype_is_kept(dtype, n_timepoints):
    source = random_volumes(n_timepoints, dtype=dtype)
    rows, _ = loaded(source)
    np.testing.assert_array_equal(rows, source.data.T)


@pytest.mark.parametrize("n_timepoints", LENGTHS)
@pytest.mark.parametrize("select", [[599, 0, 3, 3, 0], [7], list(range(600))[::-1]])
def test_selected_voxels_in_any_order_and_repeated(n_timepoints, select):
    source = random_volumes(n_timepoints)
    rows, _ = loaded(source, np.array(select))
    np.testing.assert_array_equal(rows, source.data.T[select])


def test_more_selected_voxels_than_there_are():
    source = random_volumes(20, 5)
    select = np.random.default_rng(0).integers(0, 5, 1300)
    rows, _ = loaded(source, select, n_threads=2)
    np.testing.assert_array_equal(rows, source.data.T[select])


@settings(max_examples=60, derandomize=True)
@given(
    n_timepoints=st.integers(1, 140),
    n_voxels=st.integers(1, 1200),
    n_threads=st.integers(1, 3),
    selected=st.none() | st.lists(st.integers(0, 10**6), min_size=1, max_size=40),
)
def test_any_size(n_timepoints, n_voxels, n_threads, selected):
    source = random_volumes(n_timepoints, n_voxels)
    select = None if selected is None else np.array(selected) % n_voxels
    rows, _ = loaded(source, select, n_threads=n_threads)
    np.testing.assert_array_equal(rows, source.data.T[slice(None) if select is None else select])


def test_rows_may_lie_in_a_larger_array():
    source, larger = random_volumes(20, 30), np.zeros((40, 25), "i2")
    loader.load(source, larger[5:35, 2:22])
    np.testing.assert_array_equal(larger[5:35, 2:22], source.data.T)
    assert np.count_nonzero(larger) == np.count_nonzero(source.data)


# ---- conversion on the way


def conversion(dtype, result, slope=1.0, inter=0.0, nan_policy="propagate"):
    scaled = np.dtype("f8") if (slope, inter) != (1, 0) else np.dtype(dtype)
    return Conversion(slope, inter, scaled, np.dtype(result), nan_policy)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("select", [None, np.array([599, 0, 3, 3])])
def test_values_are_converted_on_the_way(select, n_threads):
    source = random_volumes()
    how = conversion("i2", "f8", 0.5, -3.0)
    rows, _ = loaded(source, select, dtype="f8", conversion=how, n_threads=n_threads)
    np.testing.assert_array_equal(rows, source.data.T[slice(None) if select is None else select] * 0.5 - 3)


def test_non_finite_values_become_zero_on_the_way():
    source = random_volumes(dtype="f4")
    source.data[::9, ::5] = np.nan
    rows, _ = loaded(source, conversion=conversion("f4", "f4", nan_policy="zero"))
    np.testing.assert_array_equal(rows, np.nan_to_num(source.data.T))


def test_refused_values_are_counted_over_all_blocks():
    source = random_volumes(dtype="f4")
    source.data[:, ::100] = np.nan
    with pytest.raises(ParameterError, match=r"\d+ of \d+ values"):
        loaded(source, conversion=conversion("f4", "f4", nan_policy="raise"))


# ---- whether all values are finite


@pytest.mark.parametrize("dtype", ["i2", "u1", "f4", "f8"])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_finite_values_are_known_as_such(dtype, n_threads):
    assert loaded(random_volumes(dtype=dtype), n_threads=n_threads)[1] is True


@pytest.mark.parametrize("spot", [(0, 0), (69, 599), (20, 300), (0, 512)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_one_value_that_is_not_finite_is_noticed(spot, value, n_threads):
    source = random_volumes(dtype="f4")
    source.data[spot] = value
    assert loaded(source, n_threads=n_threads)[1] is False


def test_finite_values_with_an_infinite_sum_are_finite():
    source = random_volumes(dtype="f4")
    source.data[...] = np.finfo("f4").max
    assert loaded(source)[1] is True


def test_values_that_are_not_selected_do_not_matter():
    source = random_volumes(dtype="f4")
    source.data[:, 5] = np.nan
    assert loaded(source, np.array([4, 6]))[1] is True


def test_converted_values_that_stay_non_finite_are_not_called_finite():
    source = random_volumes(dtype="f4")
    source.data[3, 5] = np.nan
    rows, finite = loaded(source, dtype="f8", conversion=conversion("f4", "f8"))
    assert np.isnan(rows).any()
    assert not finite


# ---- what is told, and when


@pytest.mark.parametrize("n_timepoints", LENGTHS)
def test_progress_reaches_the_last_volume(n_timepoints):
    told = []
    loaded(random_volumes(n_timepoints), on_volumes=told.append)
    assert told == sorted(set(told))
    assert told[-1] == n_timepoints


def test_decoding_is_one_block_ahead_and_no_more():
    source, ahead = random_volumes(200), []
    loaded(source, on_volumes=lambda done: ahead.append(source.position - done))
    assert max(ahead) <= loader.block_volumes(600, source.dtype, 200)


def test_picked_volumes_are_two_buffers_ahead_and_no_more(monkeypatch):
    monkeypatch.setattr(loader, "_AHEAD_BYTES", 5 * 2 * 600)
    source, ahead = random_volumes(200), []
    rows, _ = loaded(source, np.array([5, 1]), on_volumes=lambda done: ahead.append(source.position - done))
    assert max(ahead) <= 3 * 5
    np.testing.assert_array_equal(rows, source.data.T[[5, 1]])


def test_an_image_is_read_once_and_closed():
    source = random_volumes()
    loaded(source)
    assert (source.opened, source.closed, source.position) == (1, 1, source.n_timepoints)


# ---- failures


@pytest.mark.parametrize("fails_at", ["open", 0, 1, 16, 40, 69, "close"])
@pytest.mark.parametrize("error", [OSError("damaged"), KeyboardInterrupt("stop")], ids=repr)
@pytest.mark.parametrize("select", [None, np.array([1, 2])])
def test_an_error_of_the_reader_is_raised(fails_at, error, select):
    source = random_volumes(fails_at=fails_at, error=error)
    with pytest.raises(type(error)) as caught:
        loaded(source, select, n_threads=2)
    assert caught.value is error
    assert source.closed == (fails_at != "open")


@pytest.mark.parametrize("n_threads", [1, 2])
def test_an_error_of_the_writer_ends_the_reader(n_threads):
    source = random_volumes(200, dtype="f4")
    source.data[2, 2] = np.nan
    with pytest.raises(ParameterError):
        loaded(source, conversion=conversion("f4", "f4", nan_policy="raise"), n_threads=n_threads)
    assert source.closed == 1


def test_an_error_of_the_listener_ends_the_reader():
    source = random_volumes(200)

    def listen(done):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        loaded(source, on_volumes=listen)
    assert source.closed == 1


def test_an_image_can_be_loaded_again_after_a_failure():
    source = random_volumes(fails_at=30, error=OSError("once"))
    with pytest.raises(OSError, match="once"):
        loaded(source)
    source.fails_at, source.position = None, 0
    np.testing.assert_array_equal(loaded(source)[0], source.data.T)


# ---- buffers


@pytest.mark.parametrize(
    ("n_selected", "dtype", "n_timepoints", "expected"),
    [
        (10**6, "f8", 1000, LEAST),
        (10**9, "i2", 1000, LEAST),
        (1, "u1", 1000, MOST),
        (1, "u1", 10, 10),
        (10**9, "f8", 3, 3),
        (2**18, "i2", 1000, 48),
        (0, "i2", 100, MOST),
    ],
)
def test_volumes_per_block(n_selected, dtype, n_timepoints, expected):
    assert loader.block_volumes(n_selected, np.dtype(dtype), n_timepoints) == expected


@given(
    n_selected=st.integers(0, 10**9),
    itemsize=st.sampled_from(["u1", "i2", "f4", "f8"]),
    n=st.integers(1, 10**5),
)
def test_blocks_have_bounds(n_selected, itemsize, n):
    k = loader.block_volumes(n_selected, np.dtype(itemsize), n)
    assert min(LEAST, n) <= k <= min(MOST, n)


@pytest.mark.parametrize("n_selected", [None, 600, 10, 20_000])
def test_bytes_of_buffers(n_selected, monkeypatch):
    source = random_volumes(200, dtype="f4")
    k = loader.block_volumes(n_selected or 600, source.dtype, 200)
    monkeypatch.setattr(loader, "_AHEAD_BYTES", 5 * 4 * 600)
    blocks = 2 * k * 600 if n_selected is None else k * n_selected + 2 * 5 * 600
    tile = min(n_selected or 600, loader._TILE_VOXELS)
    assert loader.buffer_bytes(source, n_selected) == 4 * (blocks + k * tile)
    tiles = 3 if n_selected == 20_000 else 1  # which no more threads than these have to do with
    assert loader.buffer_bytes(source, n_selected, 16) == 4 * (blocks + tiles * k * tile)


@pytest.mark.parametrize("reads_ahead", [True, False])
@pytest.mark.parametrize("select", [None, np.arange(0, 20000, 3), np.arange(60000) % 20000])
def test_no_more_memory_than_projected(select, reads_ahead, monkeypatch):
    monkeypatch.setattr(Volumes, "reads_ahead", reads_ahead)
    source = random_volumes(100, 20000)
    rows = np.empty((20000 if select is None else len(select), 100), "i2")
    tracemalloc.start()
    loader.load(source, rows, select=select)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= loader.buffer_bytes(source, None if select is None else len(select)) + 300_000
