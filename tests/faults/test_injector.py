"""The injector itself: every call is met where it is made, and fails as the system would let it fail."""

import _posixshmem
import errno
import fcntl
import mmap
import os

import pytest
from children import python
from faults import CALLS, ERRORS, Fault, every_fault, failing, recorded

from sharedmask.system import files


def of_a_file(path):
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, b"x" * 10)
        os.pwrite(fd, b"y" * 10, 0)
        os.pwritev(fd, [b"z" * 10], 0)
        os.posix_fallocate(fd, 0, 10)
        os.ftruncate(fd, 4096)
        os.truncate(path, 4096)
        os.fsync(fd)
        os.fdatasync(fd)
        os.lseek(fd, 0, os.SEEK_SET)
        os.read(fd, 10)
        os.pread(fd, 10, 0)
        os.preadv(fd, [bytearray(10)], 0)
        mmap.mmap(fd, 4096).close()
    finally:
        os.close(fd)
    os.link(path, f"{path}.b")
    os.rename(f"{path}.b", f"{path}.c")
    os.replace(f"{path}.c", f"{path}.b")
    os.mkdir(f"{path}.d")


SEGMENT = f"sharedmask-injector-{os.getpid()}"


def of_memory():
    os.close(os.memfd_create("name"))
    os.close(_posixshmem.shm_open(f"/{SEGMENT}", os.O_CREAT | os.O_RDWR))
    _posixshmem.shm_unlink(f"/{SEGMENT}")


def test_every_call_is_recorded_with_its_file(tmp_path):
    with recorded() as calls:
        of_a_file(tmp_path / "a")
        of_memory()
    assert {call.name for call in calls} >= set(ERRORS)
    about = {call.name: call.target for call in calls}
    assert {about[name] for name in ("open", "write", "fsync", "mmap", "flock")} == {str(tmp_path / "a")}
    assert about["rename"] == str(tmp_path / "a.c")
    assert about["memfd_create"] == "/memfd:name"
    assert about["shm_open"] == f"/dev/shm/{SEGMENT}"
    assert not {name for name in ERRORS if name not in " ".join(CALLS.values()).split()}


def test_every_fault_happens_once_and_where_it_was_told(tmp_path):
    of_a_file(tmp_path / "a")
    for count, fault in enumerate(every_fault(lambda: of_a_file(tmp_path / "first"), of="/first")):
        work = tmp_path / str(count) / "first"
        work.parent.mkdir()
        with failing(fault):
            if fault.error == "short":
                of_a_file(work)
                continue
            with pytest.raises(OSError) as raised:
                of_a_file(work)
        assert errno.errorcode[raised.value.errno] == fault.error
    assert count > 30


def test_files_of_open_are_met_too(tmp_path):
    def unbuffered(path):
        with open(path, "wb", buffering=0) as file:
            file.write(b"x" * 10)

    for write in (lambda path: path.write_text("x" * 10), lambda path: path.write_bytes(b"x"), unbuffered):
        with failing("write", "ENOSPC", of="/out$"), pytest.raises(OSError, match="No space left"):
            write(tmp_path / "out")
    with failing("write", "short", of="/out$"):
        (tmp_path / "out").write_text("0123456789")
    assert (tmp_path / "out").read_text() == "0123456789"


def test_one_of_them_or_all_from_then_on(tmp_path):
    def write(n):
        for place in range(n):
            os.pwrite(fd, b"x", place)

    fd = os.open(tmp_path / "out", os.O_CREAT | os.O_RDWR)
    with failing("pwrite", "EIO", number=3):
        with pytest.raises(OSError):
            write(3)
        write(3)
    with failing("pwrite", "EIO", number=3, lasting=True):
        for _ in range(2):
            with pytest.raises(OSError):
                write(3)
            with pytest.raises(OSError):
                write(1)
    os.close(fd)


def test_a_fault_that_does_not_happen_is_an_error(tmp_path):
    with pytest.raises(AssertionError, match="write-2-EIO did not happen"), failing("write", "EIO", number=2):
        (tmp_path / "out").write_text("x")
    with failing(Fault("write", "EIO", 2), must=False):
        (tmp_path / "out").write_text("x")


def test_exceptions_by_name_are_raised_as_ctrl_c_is(tmp_path):
    with failing("fsync", "KeyboardInterrupt"), pytest.raises(KeyboardInterrupt):
        files.write_json(tmp_path / "out.json", {})
    assert os.listdir(tmp_path) == ["registry"]


def test_maps_of_before_are_maps_meanwhile():
    before = mmap.mmap(-1, 10)
    with failing("mmap", "ENOMEM"):
        assert isinstance(before, mmap.mmap)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            mmap.mmap(-1, 10)
        assert isinstance(mmap.mmap(-1, 10), mmap.mmap)


def test_all_is_as_it_was_afterwards():
    def now():
        return [getattr(module, name) for module, names in CALLS.items() for name in names.split()], open

    usual = now()
    with pytest.raises(RuntimeError), failing("write", "EIO", must=False):
        raise RuntimeError
    assert now() == usual


@pytest.mark.parametrize(("when", "left"), [("before", ["a"]), ("after", ["a", "b"])])
def test_a_process_dies_at_the_call(when, left, tmp_path):
    script = f"""
        import os
        from faults import dying
        with dying(2, {when!r}):
            for name in "abc":
                os.mkdir(name)
    """
    (tmp_path / "here").mkdir()
    done = python(script, cwd=tmp_path / "here", helpers=True)
    assert done.returncode == -9, done.stderr
    assert sorted(os.listdir(tmp_path / "here")) == left
