"""The coordinator: images loaded once for many processes, leases, limits, its protocol and its end."""

import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from children import gone, kill_group, python, running
from click.testing import CliRunner
from command import sharedmask
from images import bold, save, signals, truth
from serving import BODY, framed, serving

from sharedmask import Coordinator, SharedImage
from sharedmask.cli.ls import list_images
from sharedmask.errors import (
    AttachError,
    DamagedImageError,
    ImageError,
    MemoryLimitError,
    MissingFileError,
    SegmentError,
    SharedMaskError,
)
from sharedmask.image import coordinator as coordinator_module
from sharedmask.image import protocol
from sharedmask.sources import loader
from sharedmask.storage import registry
from sharedmask.storage.registry import reap

STORES = ["shm", "memfd"]


def listed():
    """What the coordinator says that it holds."""
    with protocol.connect(timeout=60) as connection:
        answer = protocol.ask(connection, "list")
    for image in answer["images"]:
        assert len(image.pop("token")) == 32
    return answer


def clients_of(name):
    return next(image["clients"] for image in listed()["images"] if image["name"] == name)


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


@pytest.fixture
def runs(tmp_path):
    return [save(tmp_path / f"run-{i}.nii.gz", bold(seed=i)) for i in range(4)]


@pytest.fixture
def size(run):
    """Bytes that each of the test images takes."""
    return SharedImage(run).nbytes


@pytest.fixture
def loads(monkeypatch):
    """Names of what is loaded, with time for others to come in between."""
    load, names = loader.load, []

    def counted(source, rows, **options):
        names.append(os.path.basename(source.name))
        time.sleep(0.1)
        return load(source, rows, **options)

    monkeypatch.setattr(loader, "load", counted)
    return names


def in_threads(function, arguments):
    """The results of concurrent calls; exceptions are results."""
    results = [None] * len(arguments)
    barrier = threading.Barrier(len(arguments))

    def call(number):
        barrier.wait()
        try:
            results[number] = function(arguments[number])
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(arguments))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


# --- loading once ---


def test_many_threads_that_ask_at_once_load_once(run, loads):
    with Coordinator() as coordinator:
        images = in_threads(SharedImage.connect, [run] * 12)
        assert loads == ["run.nii.gz"]
        assert coordinator.n_loads == 1
        for image in images:
            np.testing.assert_array_equal(image.array, truth(run))
            image.close()


def test_different_images_are_loaded_at_the_same_time(runs, monkeypatch):
    load, together = loader.load, threading.Barrier(2)

    def meeting(source, rows, **options):
        together.wait(30)
        return load(source, rows, **options)

    monkeypatch.setattr(loader, "load", meeting)
    with Coordinator() as coordinator:
        for image in in_threads(SharedImage.connect, runs[:2]):
            image.close()
        assert coordinator.n_loads == 2


@pytest.mark.some(1)
@pytest.mark.parametrize("store", STORES)
def test_two_processes_get_the_same_memory(store, run):
    client = """
        import sys
        from sharedmask import SharedImage
        image = SharedImage.connect(sys.argv[1])
        print("ready", image.handle.ino, image.handle.store, int(image.array.sum()), flush=True)
        sys.stdin.read()
    """
    with (
        serving("--store", store),
        running(client, run, stdin=subprocess.PIPE) as one,
        running(client, run, stdin=subprocess.PIPE) as other,
    ):
        assert one.said == other.said
        assert one.said[1:] == [store, str(truth(run).sum())]
        assert listed() == {"version": 1, "images": [{"name": "run.nii.gz", "clients": 2}], "n_loads": 1}


def test_the_same_file_by_another_path_is_loaded_once(run, tmp_path):
    (tmp_path / "link.nii.gz").symlink_to(run)
    with Coordinator() as coordinator:
        for path in (run, tmp_path / "link.nii.gz", tmp_path / "." / "run.nii.gz"):
            SharedImage.connect(path).close()
        assert coordinator.n_loads == 1


FLEET = """
    import hashlib, json, os, random, signal, sys, threading, time
    import numpy as np
    from sharedmask import SharedImage

    expected = json.loads(sys.argv[1])
    n_processes, n_threads = int(sys.argv[2]), int(sys.argv[3])

    def visit(seed):
        paths = list(expected)
        random.Random(seed).shuffle(paths)
        for path in paths:
            with SharedImage.connect(path) as image:
                assert hashlib.sha1(image.array.tobytes()).hexdigest() == expected[path], path

    def client(number, victim):
        failed = []
        def visits(seed):
            try:
                visit(seed)
                while victim:
                    visit(seed)
            except BaseException as error:
                print("client:", repr(error), file=sys.stderr, flush=True)
                failed.append(error)
        threads = [threading.Thread(target=visits, args=(100 * number + i,)) for i in range(n_threads)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        os._exit(1 if failed else 0)

    clients = []
    for number in range(n_processes):
        pid = os.fork()
        if pid == 0:
            client(number, number % (n_processes // 5) == 0)
        clients.append(pid)
    victims = clients[:: n_processes // 5]
    for pid in victims:
        time.sleep(random.random() * 0.1)
        os.kill(pid, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in clients]
    assert [code for pid, code in zip(clients, codes) if pid in victims] == [-9] * 5
    assert not any(code for pid, code in zip(clients, codes) if pid not in victims), codes
"""


@pytest.mark.some(1)
@pytest.mark.parametrize(
    ("store", "processes", "threads", "end"),
    [
        pytest.param("shm", 50, 1, signal.SIGTERM, marks=pytest.mark.long),
        pytest.param("memfd", 50, 1, signal.SIGKILL, marks=pytest.mark.long),
        ("shm", 10, 5, signal.SIGKILL),
        ("memfd", 10, 5, signal.SIGTERM),
    ],
)
def test_fifty_clients_and_five_killed_of_them(
    store, processes, threads, end, tmp_path, registry_dir, segments_of_this_test
):
    import hashlib

    paths = [save(tmp_path / f"run-{i}.nii.gz", bold(seed=i)) for i in range(10)]
    expected = {str(path): hashlib.sha1(truth(path).tobytes()).hexdigest() for path in paths}
    with serving("--store", store) as coordinator:
        done = python(FLEET, json.dumps(expected), processes, threads)
        assert done.returncode == 0, done.stderr
        until(lambda: not any(image["clients"] for image in listed()["images"]))
        assert listed()["n_loads"] == len(listed()["images"]) == 10
        if end == signal.SIGKILL:
            kill_group(coordinator)
            assert sharedmask("gc").returncode == 0
        else:
            coordinator.terminate()
            assert coordinator.wait(60) == 0
    assert not segments_of_this_test()
    assert os.listdir(registry_dir) == []


# --- leases and limits ---


@pytest.mark.some(2)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_death_of_a_client_releases_what_it_held(number, run):
    client = """
        import sys, time
        from sharedmask import SharedImage
        image = SharedImage.connect(sys.argv[1])
        print("ready", flush=True)
        time.sleep(60)
    """
    with Coordinator(), running(client, run) as child:
        assert clients_of("run.nii.gz") == 1
        child.send_signal(number)
        child.wait()
        until(lambda: clients_of("run.nii.gz") == 0)


def test_closing_a_client_image_releases_it(run):
    with Coordinator():
        one, other = SharedImage.connect(run), SharedImage.connect(run)
        assert clients_of("run.nii.gz") == 2
        one.close()
        until(lambda: clients_of("run.nii.gz") == 1)
        other.close()
        until(lambda: clients_of("run.nii.gz") == 0)


def test_closing_releases_it_though_a_forked_child_lives(run):
    script = """
        import os, sys, time
        from sharedmask import SharedImage
        image = SharedImage.connect(sys.argv[1])
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        image.close()
        print("ready", flush=True)
        time.sleep(60)
    """
    with Coordinator(), running(script, run) as child:
        try:
            until(lambda: clients_of("run.nii.gz") == 0)
        finally:
            kill_group(child)


def test_the_least_recently_used_image_makes_room(runs, size):
    with Coordinator(memory_limit=3 * size) as coordinator:
        for path in (*runs[:3], runs[0]):
            SharedImage.connect(path).close()
            until(lambda: not any(image["clients"] for image in coordinator.images()))
        SharedImage.connect(runs[3]).close()
        names = [image["name"] for image in coordinator.images()]
        assert names == ["run-0.nii.gz", "run-2.nii.gz", "run-3.nii.gz"]
        assert coordinator.n_loads == 4


def test_a_held_image_never_makes_room(runs, size):
    with Coordinator(memory_limit=2 * size) as coordinator, SharedImage.connect(runs[0]) as held:
        for path in runs[1:]:
            SharedImage.connect(path).close()
            until(lambda: sum(image["clients"] for image in coordinator.images()) == 1)
        assert [image["name"] for image in coordinator.images()] == ["run-0.nii.gz", "run-3.nii.gz"]
        np.testing.assert_array_equal(held.array, truth(runs[0]))


def test_when_all_is_held_the_refusal_has_numbers(tmp_path):
    one, two = (save(tmp_path / f"{i}.nii", bold((32, 32, 32, 64), seed=i)) for i in range(2))
    with Coordinator(memory_limit="6M") as coordinator:
        with SharedImage.connect(one) as held:
            with pytest.raises(MemoryLimitError, match=r"1\.nii takes 4 MiB.*2 MiB more than .* of 6 MiB"):
                SharedImage.connect(two)
            np.testing.assert_array_equal(held.array, truth(one))
        until(lambda: not any(image["clients"] for image in coordinator.images()))
        with SharedImage.connect(two) as image:
            np.testing.assert_array_equal(image.array, truth(two))
        assert [image["name"] for image in coordinator.images()] == ["1.nii"]


def test_an_image_larger_than_the_limit_is_refused_and_drops_nothing(tmp_path, run):
    large = save(tmp_path / "large.nii", bold((32, 32, 32, 64)))
    with Coordinator(memory_limit="2M") as coordinator:
        SharedImage.connect(run).close()
        with pytest.raises(MemoryLimitError, match=r"large\.nii takes 4 MiB"):
            SharedImage.connect(large)
        assert [image["name"] for image in coordinator.images()] == ["run.nii.gz"]


def test_concurrent_loads_stay_within_the_limit(runs, size, loads):
    with Coordinator(memory_limit=2 * size) as coordinator:
        images = in_threads(SharedImage.connect, runs)
        try:
            assert sum(isinstance(image, SharedImage) for image in images) == 2
            assert len(coordinator.images()) * size <= 2 * size
            assert {type(image) for image in images} == {SharedImage, MemoryLimitError}
        finally:
            for image in images:
                if isinstance(image, SharedImage):
                    image.close()


@pytest.mark.parametrize("change", ["content", "mtime"])
def test_a_changed_file_is_loaded_anew(change, run):
    with Coordinator() as coordinator, SharedImage.connect(run) as old:
        before = truth(run)
        if change == "content":
            save(run, bold(seed=5))
        os.utime(run, (1, 1))
        with SharedImage.connect(run) as new:
            np.testing.assert_array_equal(new.array, truth(run))
            assert new.handle.token != old.handle.token
        np.testing.assert_array_equal(old.array, before)
        assert coordinator.n_loads == 2


# --- errors arrive as what they are ---


def test_an_unknown_path_is_missing_there_too(tmp_path):
    with Coordinator() as coordinator:
        for _ in range(2):
            with pytest.raises(MissingFileError, match=r"nothing\.nii"):
                SharedImage.connect(tmp_path / "nothing.nii")
        assert coordinator.images() == []


def test_a_damaged_image_is_damaged_for_all_who_wait(tmp_path, loads):
    path = save(tmp_path / "run.nii.gz", bold((9, 9, 9, 300)))
    path.write_bytes(path.read_bytes()[:100_000])
    with Coordinator() as coordinator:
        errors = in_threads(SharedImage.connect, [path] * 4)
        assert [type(error) for error in errors] == [DamagedImageError] * 4
        assert "truncated" in str(errors[0])
        assert (coordinator.images(), coordinator.n_loads) == ([], 0)
        save(path, bold())
        SharedImage.connect(path).close()
        assert (len(coordinator.images()), coordinator.n_loads) == (1, 1)


def test_a_text_is_no_image_there_too(tmp_path):
    (tmp_path / "run.nii").write_text("not an image")
    with pytest.raises(SharedMaskError) as here:
        SharedImage.connect(tmp_path / "run.nii")
    with Coordinator(), pytest.raises(SharedMaskError) as there:
        SharedImage.connect(tmp_path / "run.nii")
    assert (type(there.value), str(there.value)) == (type(here.value), str(here.value))


# --- how an image is named ---


def test_relative_and_home_paths_are_the_clients(run, monkeypatch):
    with serving():  # in another directory
        monkeypatch.chdir(run.parent)
        monkeypatch.setenv("HOME", str(run.parent))
        for path in ("run.nii.gz", "./run.nii.gz", "~/run.nii.gz"):
            with SharedImage.connect(path) as image:
                np.testing.assert_array_equal(image.array, truth(run))
        assert listed()["n_loads"] == 1


def test_a_missing_relative_path_is_not_looked_for_where_the_coordinator_runs(run, monkeypatch, tmp_path):
    monkeypatch.chdir(run.parent)
    with serving():
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        with pytest.raises(SharedMaskError):
            SharedImage.connect("run.nii.gz").close()


def test_an_image_the_coordinator_holds_is_found_by_its_name(run):
    with serving(run), SharedImage.connect("run.nii.gz") as image:
        np.testing.assert_array_equal(image.array, truth(run))
        assert listed() == {"version": 1, "images": [{"name": "run.nii.gz", "clients": 1}], "n_loads": 1}


@pytest.mark.some(1)
@pytest.mark.parametrize("with_coordinator", [False, True])
def test_an_image_another_process_published_is_found_by_its_name(run, with_coordinator):
    owner = """
        import sys
        from sharedmask import SharedImage
        with SharedImage(sys.argv[1]) as image:
            image.publish("subject 1")
            print("ready", flush=True)
            sys.stdin.read()
    """
    try:
        with (
            running(owner, run, stdin=subprocess.PIPE),
            serving() if with_coordinator else nullcontext(),
            SharedImage.connect("subject 1") as image,
        ):
            np.testing.assert_array_equal(image.array, truth(run))
    finally:
        reap()


def test_without_a_coordinator_the_image_is_loaded_here(run, loads):
    with SharedImage.connect(run) as image:
        np.testing.assert_array_equal(image.array, truth(run))
    assert loads == ["run.nii.gz"]


def test_without_a_coordinator_an_unknown_name_is_refused():
    with pytest.raises(AttachError, match="no image is shared under the name 'subject 2'"):
        SharedImage.connect("subject 2")


# --- life ---


def test_connect_starts_a_coordinator_that_outlives_it(run, registry_dir):
    script = """
        import sys
        from sharedmask import SharedImage
        with SharedImage.connect(sys.argv[1], start=True) as image:
            print(int(image.array.sum()))
    """
    done = python(script, run)
    assert (done.stdout, done.stderr) == (f"{truth(run).sum()}\n", "")
    pid = json.loads((registry_dir / "coordinator.claim").read_text())["pid"]
    until(lambda: listed()["images"] == [{"name": "run.nii.gz", "clients": 0}])
    with SharedImage.connect(run, start=True):  # the same one
        assert listed()["n_loads"] == 1
    assert json.loads((registry_dir / "coordinator.claim").read_text())["pid"] == pid
    os.kill(pid, signal.SIGTERM)
    assert gone([pid])
    assert os.listdir(registry_dir) == []


def test_a_second_coordinator_is_refused(run):
    with Coordinator() as first:
        with pytest.raises(SegmentError, match="another coordinator is running"):
            Coordinator().__enter__()
        done = sharedmask("serve")
        assert (done.returncode, done.stdout) == (75, "")
        assert "another coordinator is running" in done.stderr
        SharedImage.connect(run).close()
        assert first.n_loads == 1


def test_the_remains_of_a_killed_coordinator_are_taken_over(run, registry_dir, segments_of_this_test):
    with serving(run) as first:
        kill_group(first)
    assert {"coordinator.claim", "coordinator.sock"} <= set(os.listdir(registry_dir))
    assert protocol.connect() is None
    assert segments_of_this_test()
    with serving(run):
        assert listed()["n_loads"] == 1
        assert len(segments_of_this_test()) == 1
    assert not segments_of_this_test()


@pytest.mark.some(1)
@pytest.mark.parametrize("store", STORES)
def test_clients_keep_their_data_when_the_coordinator_is_killed(store, run):
    with serving("--store", store) as coordinator, SharedImage.connect(run) as image:
        kill_group(coordinator)
        reap()
        np.testing.assert_array_equal(image.mask(np.ones(image.shape[:3])), signals(run))


@pytest.mark.some(2)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("view", [lambda i: i.array, lambda i: i.frame(3), lambda i: i.stored], ids="afs")
def test_an_attached_image_gives_views_after_its_owner_is_gone(view, store, run):
    with serving("--store", store) as coordinator, SharedImage.connect(run) as image:
        expected = np.array(view(image))  # .copy() of a view would hold the segment
        kill_group(coordinator)
        reap()
        try:
            np.testing.assert_array_equal(view(image), expected)
        except SharedMaskError as error:
            said = str(error)
        else:
            said = None
    assert said is None


@pytest.mark.long
def test_it_ends_when_nobody_came_for_a_while(run, registry_dir):
    with serving(run, "--idle", "2s") as child:
        with SharedImage.connect(run):
            time.sleep(3)
            assert child.poll() is None
        assert child.wait(60) == 0
    assert os.listdir(registry_dir) == []


@pytest.mark.some(1)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("store", STORES)
def test_signals_end_it_with_nothing_left(number, store, run, registry_dir, segments_of_this_test):
    with serving(run, "--store", store) as child:
        image = SharedImage.connect(run)  # holding keeps nobody from ending it
        child.send_signal(number)
        out, err = child.communicate(timeout=60)
        assert (child.returncode, out, err) == (0, "", "")
        image.close()
    assert not segments_of_this_test()
    assert os.listdir(registry_dir) == []


def test_an_image_asked_for_while_it_ends_is_not_left(run, monkeypatch):
    from sharedmask.image import coordinator as service

    opening, go_on = threading.Event(), threading.Event()
    open_source = service.open_source

    def slow(source):
        opening.set()
        go_on.wait(30)
        return open_source(source)

    monkeypatch.setattr(service, "open_source", slow)
    coordinator = Coordinator()
    with coordinator:
        connection = protocol.connect()
        protocol.send(connection, {"verb": "open", "source": str(run)})
        opening.wait(30)
        threading.Timer(0.5, go_on.set).start()
    connection.close()
    try:
        assert coordinator.images() == []
        assert registry.entries() == []
    finally:
        for held in coordinator._images.values():
            held.image.close()


def test_a_forked_child_that_outlives_it_does_not_hold_its_claim(registry_dir):
    script = """
        import os, time
        from sharedmask import Coordinator
        with Coordinator():
            if os.fork() == 0:
                print("ready", flush=True)
                os.close(1), os.close(2)
                time.sleep(30)
                os._exit(0)
            time.sleep(60)
    """
    with running(script) as child:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        try:
            reap()
            assert os.listdir(registry_dir) == []
        finally:
            os.killpg(child.pid, signal.SIGKILL)
            until(lambda: not psutil.pid_exists(child.pid))
            time.sleep(0.1)
            reap()


# --- the protocol ---

# --- what would make it deaf ---


@pytest.mark.long
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("n_images", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_images_that_nobody_holds_make_room_for_descriptors(n_images, store, tmp_path):
    image = bold((4, 4, 4, 3))
    paths = [save(tmp_path / f"run-{i}.nii", image) for i in range(n_images)]
    with serving("--store", store, n_files=256):
        for path in paths:
            with SharedImage.connect(path) as shared:
                assert shared.shape == (4, 4, 4, 3)
        assert 20 < len(listed()["images"]) < n_images


@pytest.mark.long
def test_where_all_descriptors_are_held_the_refusal_says_so_and_ends_with_them(tmp_path):
    paths = [save(tmp_path / f"run-{i}.nii", bold((4, 4, 4, 3))) for i in range(200)]
    held = []
    with serving(n_files=256):
        with pytest.raises(SegmentError, match=r"no file descriptor left: \d+ clients hold \d+ images"):
            for path in paths:
                held.append(SharedImage.connect(path))
        assert len(held) > 20
        for image in held:
            image.close()
        until(lambda: not any(clients for clients in protocol.clients().values()))
        SharedImage.connect(paths[-1]).close()


def test_clients_that_send_half_of_a_message_keep_nobody_waiting(run):
    with serving(n_files=256), ExitStack() as slow:
        for _ in range(300):
            connection = slow.enter_context(protocol.connect(timeout=30))
            with suppress(BrokenPipeError):
                connection.sendall(framed(BODY)[:7])
        with pytest.raises(SegmentError, match="no file descriptor left"):
            SharedImage.connect(run)
        slow.close()
        until(lambda: is_served(run))


def is_served(run):
    with suppress(SharedMaskError), SharedImage.connect(run) as image:
        return np.array_equal(image.array, truth(run))


@pytest.mark.long
def test_a_hundred_clients_at_once_have_an_answer_or_a_named_error(run, tmp_path):
    paths = [run, *(save(tmp_path / f"run-{i}.nii", bold((4, 4, 4, 3))) for i in range(99))]
    with serving(n_files=256):
        answers = in_threads(SharedImage.connect, paths)
        served = [answer for answer in answers if isinstance(answer, SharedImage)]
        assert {type(answer) for answer in answers} <= {SharedImage, SegmentError}
        assert served
        for image in served:
            image.close()


def test_without_a_thread_for_a_client_it_says_so_and_goes_on(run, monkeypatch):
    start, at_the_limit = threading.Thread.start, True

    def limited(thread):
        if at_the_limit and "_serve" in repr(thread._target):
            raise RuntimeError("can't start new thread")
        start(thread)

    with Coordinator():
        monkeypatch.setattr(threading.Thread, "start", limited)
        for _ in range(3):
            with pytest.raises(SharedMaskError, match="no thread can be started"):
                SharedImage.connect(run)
        at_the_limit = False
        SharedImage.connect(run).close()


@pytest.mark.long
@pytest.mark.privileged
def test_in_a_control_group_of_few_threads_it_says_so_and_goes_on(run):
    group = Path(f"/sys/fs/cgroup/pids/sharedmask-{os.getpid()}")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no control group can be made")
    try:
        (group / "pids.max").write_text("16")
        with serving() as child, ExitStack() as slow:
            (group / "cgroup.procs").write_text(str(child.pid))
            for _ in range(30):
                connection = slow.enter_context(protocol.connect(timeout=30))
                with suppress(BrokenPipeError):
                    connection.sendall(framed(BODY)[:7])
            with pytest.raises(SharedMaskError, match=r"no thread can be started.*pids\.max"):
                SharedImage.connect(run)
            slow.close()
            until(lambda: is_served(run))
    finally:
        until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_what_is_no_file_is_refused_and_it_still_ends(tmp_path):
    os.mkfifo(tmp_path / "run.nii")
    with serving() as child:
        for name in ("run.nii", "/dev/zero"):
            with pytest.raises(ImageError, match="is a pipe, a socket or a device"):
                SharedImage.connect(tmp_path / name)
        child.terminate()
        assert child.wait(60) == 0


def test_it_ends_though_a_file_system_hangs(run, monkeypatch):
    go_on, hanging = threading.Event(), threading.Event()

    def hang(*args, **options):
        hanging.set()
        go_on.wait(60)
        raise OSError("at last")

    monkeypatch.setattr(loader, "load", hang)
    monkeypatch.setattr(coordinator_module, "_END_SECONDS", 0.5)
    with Coordinator() as coordinator:
        client = threading.Thread(target=lambda: in_threads(SharedImage.connect, [run]))
        client.start()
        hanging.wait(30)
    assert not coordinator._accepting.is_alive()
    go_on.set()
    client.join()
    for thread in coordinator._threads:
        thread.join()


def test_a_load_may_take_longer_than_an_answer(run, monkeypatch):
    load = loader.load

    def slow(*args, **options):
        time.sleep(1)
        return load(*args, **options)

    monkeypatch.setattr(loader, "load", slow)
    monkeypatch.setattr(protocol, "ANSWER_SECONDS", 0.2)
    with Coordinator(), SharedImage.connect(run) as image:
        np.testing.assert_array_equal(image.array, truth(run))


@pytest.mark.long
def test_a_stopped_coordinator_is_named_and_can_be_replaced(run, monkeypatch):
    monkeypatch.setattr(protocol, "ANSWER_SECONDS", 0.5)
    with serving(run) as stopped:
        stopped.send_signal(signal.SIGSTOP)
        said = rf"the coordinator \(process {stopped.pid}\) has not answered for 0.5 s.*serve --replace"
        with pytest.raises(AttachError, match=said):
            SharedImage.connect(run)
        with ExitStack() as waiting, pytest.raises(AttachError, match=said):
            for _ in range(200):  # more than the kernel keeps for it
                waiting.enter_context(protocol.connect())
        with serving(run, "--replace") as other:
            assert stopped.wait(60) == 0
            monkeypatch.undo()
            with SharedImage.connect(run) as image:
                np.testing.assert_array_equal(image.array, truth(run))
            assert other.poll() is None


def test_replacing_nobody_is_serving(run):
    with serving(run, "--replace"), SharedImage.connect(run) as image:
        np.testing.assert_array_equal(image.array, truth(run))


def test_ls_lists_what_there_is_though_the_coordinator_is_stopped(run, monkeypatch):
    monkeypatch.setattr(protocol, "ANSWER_SECONDS", 0.5)
    with serving(run) as stopped:
        stopped.send_signal(signal.SIGSTOP)
        done = CliRunner().invoke(list_images, [])
        stopped.send_signal(signal.SIGCONT)
    assert done.exit_code == 0
    assert "run.nii.gz" in done.stdout
    assert "has not answered" in done.stderr


def test_a_registry_that_was_made_again_is_its_successors(run, registry_dir):
    with ExitStack() as later:
        with Coordinator():
            shutil.rmtree(registry_dir)
            registry_dir.mkdir(mode=0o700)
            successor = later.enter_context(Coordinator())
        with SharedImage.connect(run) as image:
            np.testing.assert_array_equal(image.array, truth(run))
        assert successor.n_loads == 1


def test_a_coordinator_whose_registry_was_removed_ends_and_says_why(run, registry_dir, segments_of_this_test):
    with serving(run) as child:
        shutil.rmtree(registry_dir)
        assert child.wait(60) == 75
        assert "nobody finds this coordinator any more" in child.stderr.read()
    assert not segments_of_this_test()


# --- who may talk to it ---


def test_the_socket_is_the_users_alone(registry_dir):
    with Coordinator():
        facts = os.stat(registry_dir / "coordinator.sock")
        assert stat.S_ISSOCK(facts.st_mode)
        assert stat.S_IMODE(facts.st_mode) == 0o600
        assert stat.S_IMODE(os.stat(registry_dir).st_mode) == 0o700


STRANGER = """
    import json, os, socket, sys
    from dataclasses import replace
    from sharedmask import SharedImage, errors
    from sharedmask.storage import registry
    from sharedmask.storage import segment as segments
    from sharedmask.storage import memory as stores
    from sharedmask.image import protocol as wire
    from sharedmask.storage.segment import Handle, attach

    folder = os.environ["SHAREDMASK_DIR"]
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)

    def refused(what, attempt):
        try:
            attempt()
        except OSError as error:
            print("refused", what, error)
        else:
            print("REACHED", what)

    for handle in map(Handle.from_json, sys.argv[2:]):
        kind = handle.store
        place = f"/dev/shm/{handle.name}" if kind == "shm" else f"/proc/{handle.pid}/fd/{handle.fd}"
        refused(kind + " attach", lambda: attach(handle))
        refused(kind + " forged", lambda: attach(replace(handle, uid=65534)))
        refused(kind + " open", lambda: os.open(place, os.O_RDONLY))
        refused(kind + " write", lambda: os.open(place, os.O_RDWR))
    refused("registry", registry.entries)
    refused("list", lambda: os.listdir(folder))
    refused("connect", wire.connect)

    def talk():
        with socket.socket(socket.AF_UNIX) as there:
            there.connect(folder + "/coordinator.sock")
            wire.ask(there, "list")
    refused("talk", talk)
"""


@pytest.mark.some(1)
@pytest.mark.privileged
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("opened", [False, True], ids=["as it is", "with an open socket"])
def test_another_user_reaches_neither_segments_nor_the_socket(opened, run, monkeypatch):
    """With everything opened by chmod, the kernel's word on who is at the other end is left."""
    with tempfile.TemporaryDirectory() as parent:
        os.chmod(parent, 0o755)
        folder = Path(parent) / "registry"
        monkeypatch.setenv("SHAREDMASK_DIR", str(folder))
        with Coordinator(), SharedImage(run, store="shm") as shm, SharedImage(run, store="memfd") as memfd:
            handles = [image.handle.to_json() for image in (shm, memfd)]
            if opened:
                folder.chmod(0o711)
                (folder / "coordinator.sock").chmod(0o666)
            done = python(STRANGER, "-", *handles)
            folder.chmod(0o700)
        assert done.returncode == 0, done.stderr
        assert "REACHED" not in done.stdout, done.stdout
        assert done.stdout.count("refused") == 12
        assert not opened or "refused talk the coordinator went away" in done.stdout
        os.rmdir(folder)
