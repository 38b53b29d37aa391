"""Files of our own: whole or not at all, never mixed, never through a name of others; locks."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time

import bare
import pytest
from children import python, running
from faults import Call, failing, recorded

from sharedmask.system import files, locks, platform, process, settings
from sharedmask.system.files import atomic_write
from sharedmask.system.together import Together


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    files._swept.clear()
    return tmp_path / "out"


@pytest.fixture(params=["nameless", "named"])
def how(request, monkeypatch):
    """The file has no name while it is written, or has one because it must."""
    if request.param == "named":
        monkeypatch.setattr(files, "nameless", lambda folder, mode=0o600: None)
    return request.param


def left_in(folder):
    return sorted(os.listdir(folder))


# --- whole or not at all ---


@pytest.mark.parametrize("old", [None, "old"])
def test_a_file_is_whole_or_not_there(folder, how, old):
    path = folder / "out.tsv"
    if old is not None:
        path.write_text(old)
    before = left_in(folder)
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert left_in(folder) == before
    assert old is None or path.read_text() == old
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert old is None or path.read_text() == old
    assert path.read_text() == "new"
    assert left_in(folder) == ["out.tsv"]


def test_a_file_has_the_usual_mode(folder, how):
    old = os.umask(0o027)
    try:
        with atomic_write(folder / "out.tsv") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(old)
    assert stat.S_IMODE((folder / "out.tsv").stat().st_mode) == 0o640


@pytest.mark.parametrize("call", ["fsync", "replace", "link"])
@pytest.mark.parametrize("old", [False, True])
def test_a_call_that_fails_leaves_the_old_file_and_nothing_else(folder, how, call, old):
    path = folder / "out.tsv"
    if old:
        path.write_text("old")
    before = left_in(folder)
    unused = (how, call) == ("named", "link") or (how, call, old) == ("nameless", "replace", False)
    fails = (
        contextlib.nullcontext() if unused else pytest.raises(OSError, match=f"Input/output error: '{path}'$")
    )
    with failing(call, "EIO", lasting=True, must=not unused), fails, atomic_write(path) as temporary:
        temporary.write_text("new")
    if unused:
        assert path.read_text() == "new"
    else:
        assert left_in(folder) == before
        assert not old or path.read_text() == "old"


def test_a_name_that_no_file_can_have_is_told_alone(folder, how):
    path = folder / f"{300 * 'x'}.tsv"
    with pytest.raises(OSError, match=f"File name too long: '{path}'$"), atomic_write(path) as temporary:
        temporary.write_text("new")
    folder.chmod(0o700)
    with pytest.raises(OSError, match=f": '{path}'$"), files.private_directory(folder, "it") as opened:
        platform.open_at(opened, path.name, os.O_RDONLY)
    assert left_in(folder) == []


def test_the_bytes_are_on_the_disk_before_the_name_and_the_name_after(folder, how):
    with recorded() as calls, atomic_write(folder / "out.tsv") as temporary:
        temporary.write_text("new")
    order = [call for call in calls if call.name in ("write", "fsync", "link", "replace")]
    named = Call("link" if how == "nameless" else "replace", str(folder / "out.tsv"))
    assert [call.name for call in order[:2]] == ["write", "fsync"]
    assert order[2:] == [named, Call("fsync", str(folder))]


def test_threads_that_write_one_output_do_not_mix(folder, how):
    path, begun = folder / "out.tsv", threading.Barrier(4)

    def write(letter):
        begun.wait()
        for _ in range(10):
            with atomic_write(path) as temporary, open(temporary, "w") as file:
                for _ in range(20):
                    file.write(letter * 1000)
                    file.flush()

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in [letter * 20000 for letter in "abcd"]
    assert left_in(folder) == ["out.tsv"]


# --- what is no regular file ---


def test_a_device_is_written_to_and_stays():
    before = os.stat("/dev/null")
    with atomic_write("/dev/null") as temporary:
        temporary.write_text("nothing")
    assert os.path.samestat(os.stat("/dev/null"), before)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_pipe_is_written_to_and_stays(folder):
    os.mkfifo(path := folder / "pipe")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with atomic_write(path) as temporary:
        temporary.write_text("a row")
    assert os.read(reader, 100) == b"a row"
    os.close(reader)
    assert stat.S_ISFIFO(path.lstat().st_mode)


def _socket(path):
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(os.fspath(path))


def opened(path):
    with atomic_write(path):
        pytest.fail("it is not refused before it is written")


def written(path):
    files.write_text(path, map(pytest.fail, ["it is not refused before it is written"]))


@pytest.mark.parametrize("write", [opened, written])
@pytest.mark.parametrize("in_group", [False, True])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (os.mkdir, "a directory has the name of this output"),
        (_socket, "a socket has the name of this output"),
        (os.mkfifo, "nobody reads this pipe"),
    ],
)
def test_what_cannot_be_written_to_is_refused_at_once(folder, write, make, said, in_group):
    make(path := folder / "out.tsv")
    group = Together() if in_group else contextlib.nullcontext()
    with pytest.raises(OSError, match=said) as caught, group:
        write(path)
    assert caught.value.filename == str(path)
    assert left_in(folder) == ["out.tsv"]


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("to", ["a pipe", "a file"])
def test_standard_output_is_written_to_and_stays(name, to, folder):
    script = f"""
        from sharedmask.system.files import atomic_write
        with atomic_write({name!r}) as temporary:
            temporary.write_text("a row")
    """
    if to == "a pipe":
        assert python(script).stdout == "a row"
    else:
        import subprocess
        import textwrap

        with open(folder / "out", "wb") as out:
            subprocess.run([sys.executable, "-c", textwrap.dedent(script)], stdout=out, check=True)
        assert (folder / "out").read_text() == "a row"
    assert not stat.S_ISREG(os.lstat("/dev/stdout").st_mode)


def test_a_link_is_replaced_and_what_it_leads_to_stays(folder, tmp_path):
    """As in a folder of DataLad, where links lead to files that nobody may change."""
    (tmp_path / "kept").write_text("kept")
    (folder / "out.tsv").symlink_to(tmp_path / "kept")
    with atomic_write(folder / "out.tsv") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "kept").read_text() == "kept"
    assert not (folder / "out.tsv").is_symlink()


def test_a_directory_is_refused(folder):
    with pytest.raises(IsADirectoryError), atomic_write(folder) as temporary:
        temporary.write_text("new")


# --- what killed writers leave ---

KILLED = """
    import os, signal, sys
    from sharedmask.system import files

    path, how, left = sys.argv[1], sys.argv[2], int(sys.argv[3])

    def dying(call):
        def wrapped(*args, **options):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)
        return wrapped

    if how == "named":
        files.nameless = lambda folder, mode=0o600: None
    for name in ("open", "fsync", "link", "replace", "unlink", "close", "listdir", "fstat", "stat", "write"):
        setattr(os, name, dying(getattr(os, name)))
    with files.atomic_write(path) as temporary:
        fd = os.open(temporary, os.O_WRONLY)
        os.write(fd, b"new")
        os.close(fd)
    print("survived")
"""


@pytest.mark.long
@pytest.mark.parametrize("how", ["nameless", "named"])
@pytest.mark.parametrize("old", [False, True])
def test_a_writer_killed_at_any_call_leaves_nothing_that_is_not_swept(folder, how, old):
    path, other = folder / "out.tsv", folder / "other.tsv"
    swept = 0
    for call in range(1, 100):
        path.unlink(missing_ok=True)
        if old:
            path.write_text("old")
        done = python(KILLED, path, how, call)
        if "survived" in done.stdout:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not path.exists() or path.read_text() in (["old", "new"] if old else ["new"])
        litter = set(left_in(folder)) - {"out.tsv"}
        if call % 2:  # by the next write
            files._swept.clear()
            with atomic_write(other) as temporary:
                temporary.write_text("other")
            other.unlink()
        else:  # or by hand
            assert set(files.sweep(folder)) == {str(folder / name) for name in litter}
        assert set(left_in(folder)) <= {"out.tsv"}
        swept += len(litter)
    assert "survived" in done.stdout
    assert call > 8
    assert (swept > 0) == (how == "named" or old)


WRITING = """
    import sys, time
    from sharedmask.system import files
    files.nameless = lambda folder, mode=0o600: None
    with files.atomic_write(sys.argv[1]):
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("system", ["", "macos", "windows"])
def test_gc_sweeps_the_folders_it_is_given(folder, system):
    """Of the dead only, wherever processes are looked for."""
    path = os.pathsep.join([os.path.dirname(bare.__file__), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "BARE_PROFILE": system, "PYTHONPATH": path}
    writing = [sys.executable, "-c", textwrap.dedent(WRITING), folder / "out.tsv"]
    with subprocess.Popen(writing, env=env, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"ready\n"
        (left,) = left_in(folder)
        done = python("sharedmask", "gc", folder, how="-m", env=env)
        assert (done.returncode, left_in(folder)) == (0, [left]), done.stderr
        child.kill()
    done = python("sharedmask", "gc", folder, how="-m", env=env)
    assert f"removed {folder / left}" in done.stdout, done.stderr
    assert left_in(folder) == []


def test_what_is_being_written_is_not_swept(folder):
    with running(WRITING, folder / "out.tsv"):
        before = left_in(folder)
        assert files.sweep(folder) == []
        assert left_in(folder) == before != []


@pytest.mark.parametrize(
    "name",
    [
        ".sharedmask-{here}-1-x-{token}.tmp",
        ".sharedmask-00000000-999999999-5-{token}.tmp",
        ".out.tsv.999999999.tmp",
        "sharedmask-{here}-999999999-5-{token}.tmp",
    ],
)
def test_names_of_others_and_of_other_machines_are_not_swept(folder, name):
    name = name.format(here=process._here(), token=16 * "0")
    (folder / name).write_text("mine")
    assert files.sweep(folder) == []
    assert left_in(folder) == [name]


def test_what_is_no_file_of_ours_is_not_swept(folder, tmp_path):
    name = f".sharedmask-{process._here()}-999999999-5-{16 * '0'}.tmp"
    (tmp_path / "thesis").write_text("mine")
    (folder / name).symlink_to(tmp_path / "thesis")
    assert files.sweep(folder) == []
    assert left_in(folder) == [name]


def test_what_was_half_written_stays_if_that_is_asked_for(folder, how):
    with (
        settings.using(cleanup_temporary=False),
        pytest.warns(UserWarning, match="left half written: .*out.tsv"),
        pytest.raises(RuntimeError),
        atomic_write(folder / "out.tsv") as temporary,
    ):
        temporary.write_text("half")
        raise RuntimeError
    (left,) = left_in(folder)
    assert (folder / left).read_text() == "half"
    assert files.sweep(folder) == []


# --- locks and bytes ---


def test_a_lock_is_that_of_the_file_that_has_the_name(folder):
    path, held, flags = folder / "one.lock", [], os.O_CREAT | os.O_RDWR

    def locked():
        return locks.opened_locked(None, str(path), flags, lambda fd: fcntl.flock(fd, fcntl.LOCK_EX))

    first = locked()
    waiting = threading.Thread(target=lambda: held.append(locked()))
    waiting.start()
    time.sleep(0.2)
    path.unlink()
    path.touch()
    os.close(first)
    waiting.join()
    assert os.path.samestat(path.stat(), os.fstat(held[0]))
    os.close(held[0])


def test_of_many_that_want_a_lock_one_has_it_and_no_file_stays(folder):
    fd = os.open(folder, os.O_RDONLY)
    inside, most = [], []

    def take(number):
        for _ in range(20):
            with locks.locked(fd, "lock"):
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.remove(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(fd)
    assert max(most) == 1
    assert len(most) == 80
    assert left_in(folder) == []


@pytest.mark.parametrize(
    ("make", "ours"),
    [
        (lambda path: path.write_bytes(b"magic and more"), True),
        (lambda path: path.write_bytes(b""), True),
        (lambda path: path.write_bytes(b"thesis"), False),
        (lambda path: path.symlink_to("/etc/hostname"), False),
        (os.mkfifo, False),
        (os.mkdir, False),
        (lambda path: None, False),
    ],
)
def test_only_what_begins_as_ours_is_opened(folder, make, ours):
    make(folder / "name")
    fd = os.open(folder, os.O_RDONLY)
    with files.opened_ours(fd, "name", b"magic") as found:
        assert (found is not None) == ours
    os.close(fd)


def test_short_writes_and_reads_are_gone_on_with(folder):
    data = bytes(range(20))
    fd = os.open(folder / "file", os.O_RDWR | os.O_CREAT)
    with failing("pwrite", "short", lasting=True):
        files.pwrite_all(fd, data, 5)
    found = bytearray(20)
    with failing("preadv", "short", lasting=True):
        assert files.pread_into(fd, memoryview(found), 5) == 20
        assert found == data
        assert files.pread_into(fd, memoryview(found), 15) == 10
    os.close(fd)


@pytest.mark.parametrize("tmpfile", [True, False])
def test_scratch_has_no_name(folder, tmpfile, monkeypatch):
    if not tmpfile:
        monkeypatch.setattr(files, "nameless", lambda folder, mode=0o600: None)
    fd = files.scratch(folder)
    os.write(fd, b"x")
    assert left_in(folder) == []
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
    os.close(fd)


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {
            "a": [],
            "b": {},
            "c": None,
            "d": True,
            "e": 1e-7,
            "f": [1, [2.5, {"g": ["é\n", '"']}]],
            "h": (1, 2),
        },
        {"a": {1: 2, "b": 3}, "nan": float("nan"), "big": 10**30, "": [[], {}]},
        {"ä": {"b": [1, 1e-05, 1e16, True, None, {}]}, "c": ((), ("x", [2.0]))},
    ],
)
def test_json_is_that_of_the_standard_library(tmp_path, facts):
    files.write_json(tmp_path / "a.json", facts)
    assert (tmp_path / "a.json").read_text() == json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
