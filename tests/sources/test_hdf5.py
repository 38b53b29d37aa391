"""The border to HDF5: entries are read past it as by it; a new file is complete, or there is an error."""

import errno
import os
import signal
import threading

import h5py
import networks
import numpy as np
import pytest
from children import in_fork, python
from images import bold, niimg

from sharedmask import FrameDataset
from sharedmask.errors import ConnectomeError, DamagedImageError, MemoryLimitError, MissingFileError
from sharedmask.network.connectome import Connectome
from sharedmask.settings import using
from sharedmask.sources import hdf5

SHAPE = (5, 7, 6, 4)
LAYOUTS = {
    "in one piece": {},
    "deflated": {"chunks": (1, *SHAPE[1:]), "compression": "gzip"},
    "plain chunks": {"chunks": (1, *SHAPE[1:])},
    "shuffled": {"chunks": (1, *SHAPE[1:]), "compression": "gzip", "shuffle": True},
    "shared chunks": {"chunks": (2, *SHAPE[1:]), "compression": "gzip"},
    "small chunks": {"chunks": (1, 2, 3, 4), "compression": "gzip"},
}
BY_HDF5_ONLY = ("shuffled", "shared chunks", "small chunks")


def values(dtype="i2"):
    return np.random.default_rng(0).integers(-99, 99, SHAPE).astype(dtype)


def write(path, layout="deflated", userblock=0):
    with h5py.File(path, "w", userblock_size=userblock) as file:
        file.create_dataset("a", data=values(), **LAYOUTS[layout])
    return path


# --- entries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("userblock", [0, 512])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_entries_of_every_layout_are_read(layout, userblock, order, tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "_SLAB_BYTES", 3 * values()[0, 0].nbytes)
    with hdf5.open_file(write(tmp_path / "a.h5", layout, userblock), "a.h5") as file:
        past = [hdf5.Entries(file["a"]).span(number) is not None for number in range(len(values()))]
        assert set(past) == {layout not in BY_HDF5_ONLY and (not userblock or layout == "in one piece")}
        for number, expected in enumerate(values()):
            out = np.empty(SHAPE[1:], "i2", order=order)
            hdf5.Entries(file["a"]).read(number, out, "entry")
            np.testing.assert_array_equal(out, expected)


def test_an_entry_that_was_never_written_is_what_hdf5_says(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", SHAPE, "i2", fillvalue=7, **LAYOUTS["deflated"])[1] = 1
    with hdf5.open_file(tmp_path / "a.h5", "a.h5") as file:
        assert hdf5.Entries(file["a"]).span(0) is None
        out = np.empty(SHAPE[1:], "i2")
        hdf5.Entries(file["a"]).read(0, out, "entry")
        assert (out == 7).all()


def test_a_damaged_entry_is_named(tmp_path):
    path = write(tmp_path / "a.h5")
    with h5py.File(path) as file:
        offset = hdf5.Entries(file["a"]).span(3).offset
    with open(path, "r+b") as file:
        file.seek(offset + 20)
        file.write(b"\xff" * 40)
    with (
        hdf5.open_file(path, "a.h5") as file,
        pytest.raises(DamagedImageError, match="entry 3 is damaged"),
    ):
        hdf5.Entries(file["a"]).read(3, np.empty(SHAPE[1:], "i2"), "entry 3")


def test_what_is_not_hdf5_is_refused_as_the_caller_says(tmp_path):
    (tmp_path / "text.h5").write_text("no")
    for kind in (DamagedImageError, KeyError):
        with (
            pytest.raises(kind, match=r"text\.h5 cannot be read as HDF5"),
            hdf5.open_file(tmp_path / "text.h5", "text.h5", kind),
        ):
            pass
    with pytest.raises(MissingFileError, match="none"), hdf5.open_file(tmp_path / "none", "none"):
        pass


# --- a new file ----------------------------------------------------------------------------------


def make(path, layout="deflated"):
    with hdf5.create_file(path) as new:
        new.add("before", np.arange(100))
        dataset = new.file.create_dataset("a", SHAPE, "i2", **LAYOUTS[layout])
        for number, entry in enumerate(values()):
            new.write_entry(hdf5.Entries(dataset), number, entry)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_new_file_holds_what_was_written(layout, tmp_path):
    make(tmp_path / "out.h5", layout)
    with h5py.File(tmp_path / "out.h5") as file:
        np.testing.assert_array_equal(file["a"][...], values())
        np.testing.assert_array_equal(file["before"][...], np.arange(100))


FAILING = """
    import errno, sys
    import h5py, numpy as np
    from sharedmask.sources import hdf5
    from test_hdf5 import LAYOUTS, make

    class Failing(hdf5._Output):
        left = 0
        def _tried(self, do, *args, instead):
            Failing.left -= 1
            return super()._tried(fail if Failing.left == 0 else do, *args, instead=instead)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    hdf5._Output = Failing
    for layout in LAYOUTS:
        for n in range(2, 10_000):  # the first is a seek in an empty file
            Failing.left = n
            try:
                make(sys.argv[1], layout)
            except OSError as error:
                assert error.errno == errno.ENOSPC and "out.h5" in str(error), error
            else:
                break
        assert n > 10 and Failing.left > 0, (layout, n, Failing.left)
    print("all told")
"""


@pytest.mark.long
def test_whichever_call_meets_the_full_disk_the_error_names_the_file(tmp_path):
    """In a process of its own: HDF5 crashes, at the latest when it ends, where it is told of errors."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), *_here()])}
    done = python(FAILING, tmp_path / "out.h5", env=env)
    assert (done.returncode, done.stdout) == (0, "all told\n"), done.stderr


LIMITED = """
    import resource, sys
    from test_hdf5 import make

    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    try:
        make(sys.argv[1], sys.argv[3])
    except OSError as error:
        print(error.errno, error)
"""


def _here():
    return [os.path.dirname(__file__), os.path.join(os.path.dirname(__file__), "..", "helpers")]


@pytest.mark.long
@pytest.mark.parametrize("layout", ["in one piece", "deflated"])
@pytest.mark.parametrize("limit", [0, 100, 1000, 3000])
def test_a_file_that_cannot_grow_is_an_error_and_no_crash(limit, layout, tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), *_here()])}
    done = python(LIMITED, tmp_path / "out.h5", limit, layout, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{errno.EFBIG} ") and "out.h5" in done.stdout


def test_a_file_that_is_not_as_it_was_written_is_an_error(tmp_path, monkeypatch):
    close = hdf5._Output.close

    def cut(self):
        close(self)
        os.truncate(tmp_path / "out.h5", 1000)

    monkeypatch.setattr(hdf5._Output, "close", cut)
    with pytest.raises(OSError, match=r"HDF5 cannot read what it wrote.*out\.h5"):
        make(tmp_path / "out.h5")


def test_a_signal_is_handled_between_calls_of_hdf5(tmp_path):
    """Not within: an exception of its handler would pass through HDF5."""

    class Interrupting:
        def __array__(self, dtype=None, copy=None):
            signal.raise_signal(signal.SIGINT)
            return np.arange(3)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), hdf5.create_file(tmp_path / "out.h5") as new:
        new.add("a", Interrupting())
    assert signal.getsignal(signal.SIGINT) is before
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["a"][...].tolist() == [0, 1, 2]


# --- what promises too much ---


def promising(path, where, shape, chunks):
    """A file of some KB, in which a data set of which nothing was written has that shape."""
    with h5py.File(path, "a") as file:
        del file[where]
        file.create_dataset(where, shape, "f8", chunks=chunks)
    assert path.stat().st_size < 500_000
    return path


@pytest.mark.parametrize("field", ["0/_numbers", "0/gradients", "0/affine"])
@pytest.mark.parametrize("shape", [(20_000, 20_000), (10**6, 10**6)], ids=["3 GB", "7 TB"])
def test_frames_that_promise_more_than_fits_are_refused(field, shape, tmp_path):
    path = tmp_path / "frames.h5"
    with FrameDataset(niimg(bold()), per_frame={"gradients": np.ones((12, 4))}) as frames:
        frames.to_filename(path)
    promising(path, field, shape, (100, 100))
    with (
        using(memory_limit="256M"),
        pytest.raises((MemoryLimitError, DamagedImageError), match=r"frames\.h5"),
    ):
        FrameDataset(path)


@pytest.mark.parametrize("shape", [(3, 10**9), (3, 10**12)], ids=["24 GB", "24 TB"])
@pytest.mark.parametrize("field", ["mask_indices", "mask_affine"])
def test_a_connectome_that_promises_more_than_fits_is_refused(field, shape, tmp_path):
    path = promising(networks.write(tmp_path / "a.h5", networks.series(2, 4)), field, shape, (3, 1000))
    with pytest.raises(ConnectomeError, match=r"a\.h5"):
        Connectome.open(path)


def test_mask_indices_that_agree_with_the_series_are_within_the_budget(tmp_path):
    path = promising(
        networks.write(tmp_path / "a.h5", networks.series(2, 4)), "mask_indices", (3, 10**9), (3, 9)
    )
    promising(path, "timeseries", (2, 4, 10**9), (1, 4, 9))
    with h5py.File(path, "a") as file:
        file.attrs["mask_shape"] = (1000, 1000, 1000)
    with (
        using(memory_limit="256M"),
        pytest.raises(MemoryLimitError, match=r"reading mask_indices of .*a\.h5"),
    ):
        Connectome.open(path)


def test_a_child_that_is_forked_while_another_thread_reads_can_read_too(tmp_path):
    """h5py's lock is held by a thread that the child does not have."""

    def read():
        with hdf5.open_file(path, "a.h5") as file:
            return int(file["a"][()].sum())

    def hold():
        with h5py._objects.phil:
            held.set()
            go_on.wait(0.2)

    path = write(tmp_path / "a.h5")
    expected, held, go_on = read(), threading.Event(), threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    assert in_fork(read) == str(expected)
    thread.join()


@pytest.mark.parametrize("size", [b"\xff" * 8, b"\xf0" + b"\xff" * 7, b"\xe0" + b"\xff" * 7])
@pytest.mark.parametrize("libver", ["earliest", "v110"])
def test_a_text_that_hdf5_never_comes_back_from_is_refused(tmp_path, size, libver):
    path = tmp_path / "texts.h5"
    with h5py.File(path, "w", libver=(libver, "latest")) as file:
        file.attrs["format"], file.attrs["type"] = "NFDH5", "dmri"
    good = path.read_bytes()

    def texts():
        with hdf5.open_facts(path, "texts.h5") as file:
            return dict(file.attrs)

    assert texts() == {"format": "NFDH5", "type": "dmri"}
    place = good.index(b"NFDH5") - 8
    path.write_bytes(good[:place] + size + good[place + 8 :])
    assert "DamagedImageError('texts.h5 is damaged: its texts at byte" in in_fork(texts)


@pytest.mark.parametrize("chunks", [None, (1, 4)])
def test_values_of_a_type_that_numpy_lacks_are_hdf5s(tmp_path, chunks):
    """HDF5 tells the nearest type: the bytes are not its values."""
    kind = h5py.h5t.STD_I32LE.copy()
    kind.set_precision(24)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        if chunks:
            made.set_chunk(chunks)
        space = h5py.h5s.create_simple((3, 4))
        dataset = h5py.Dataset(h5py.h5d.create(file.id, b"x", kind, space, made))
        dataset[...] = -np.arange(12, dtype="i4").reshape(3, 4)
    with h5py.File(tmp_path / "x.h5") as file:
        entries, out = hdf5.Entries(file["x"]), np.empty(4, "i4")
        assert file["x"].dtype == out.dtype and entries.offset is None
        entries.read(1, out, "x.h5")
    np.testing.assert_array_equal(out, [-4, -5, -6, -7])
