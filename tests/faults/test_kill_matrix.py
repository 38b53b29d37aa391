"""SIGKILL before and after every call to the system, and every other end of owners, groups and readers."""

import itertools
import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
from children import gone, kill_group, python, running
from command import sharedmask
from images import bold, random_masks, save
from owners import OWNER, ROWS, STORES, assert_no_leak, handle_of

from sharedmask import SharedImage
from sharedmask.errors import SharedMaskError
from sharedmask.storage.registry import entries, reap
from sharedmask.storage.segment import attach

pytestmark = pytest.mark.long

# --- T-kill: SIGKILL before and after every call to the system ---

KILLS = '''
    import json, os, signal, sys
    import numpy as np
    from faults import CALLS, dying
    from multiprocessing import resource_tracker
    import sharedmask
    from sharedmask.storage import registry
    from sharedmask.storage import segment as segments
    from sharedmask.storage.registry import OwnedSegment as Owned, entries, reap
    from sharedmask.storage.segment import Handle, attach

    scenario, store, path = sys.argv[1:4]

    # Names of this test's own, whoever else uses /dev/shm at the moment.
    urandom = os.urandom
    mark = urandom(4)
    os.urandom = lambda n: urandom(n) if n < 16 else mark + urandom(n - 4)  # of tokens

    def named():
        return {name for name in os.listdir("/dev/shm") if name.startswith("sharedmask-" + mark.hex())}
    GEOMETRY = {"rows": ((3, 5), np.dtype("int16"))}
    raw_read, raw_write = os.read, os.write
    # Reads are left out: nothing is other after one of them.
    NAMES = {name for names in CALLS.values() for name in names.split()} - {"read", "pread", "preadv"}

    def show(handle):
        """Wait until the reader has attached."""
        raw_write(to_reader[1], handle.to_json().encode())
        raw_read(to_owner[0], 1)

    def life():
        owned = Owned("run", GEOMETRY, store)
        owned.segment.array("rows")[:] = 7
        show(owned.share({}))
        attach(owned.rename("other"))
        owned.record.keep()
        owned.release()

    def an_image():
        with sharedmask.SharedImage(path, store=store) as shared:
            shared.load()
            show(shared.handle)
            shared.publish("other")
            shared.array
            shared.as_nifti()

    def reaper():
        reap()
        registry.entries()

    def reader():
        attach(theirs).arrays["rows"].sum()
        entries()

    def victim():
        """What somebody leaves who is killed: written by hand, so no tracker takes it away."""
        for suffix in ("", ".0a1b2c3d"):
            token = os.urandom(16).hex()
            os.close(os.open(f"/dev/shm/{segments.segment_name(token)}", os.O_CREAT | os.O_WRONLY, 0o600))
            with open(f"{folder}/{token}.json{suffix}", "w") as file:
                file.write("{")

    run = {"life": life, "image": an_image, "reap": reaper, "attach": reader}[scenario]
    folder = str(registry.directory())
    entries()
    living = Owned("living", GEOMETRY, store)
    living.segment.array("rows")[:] = 3
    theirs = living.share({})
    show, shown = (lambda handle: None), show
    run()  # what it imports, no fork has to
    show = shown
    mine = set(os.listdir(folder)), named()
    failures, points, readers = [], 0, 0
    whoms = ("owner", "group") if scenario in ("life", "image") else ("owner",)
    for when in ("before", "after"):
        for whom in whoms:
            for number in range(1, 2000):
                if scenario == "reap":
                    victim()
                to_reader, to_owner = os.pipe(), os.pipe()
                pid = os.fork()
                if pid == 0:
                    os.setsid()
                    tracker = resource_tracker._resource_tracker
                    tracker._fd = tracker._pid = None  # one of its own
                    os.close(to_reader[0]), os.close(to_owner[1])
                    code = 1
                    try:
                        with dying(number, when, os.killpg if whom == "group" else os.kill, NAMES):
                            run()
                        code = 0
                    except BaseException as error:
                        raw_write(2, f"{number} {when} {error!r}".encode())
                    finally:
                        os._exit(code)
                os.close(to_reader[1]), os.close(to_owner[0])
                said, rows = os.read(to_reader[0], 10_000), None
                if said:
                    rows = attach(Handle.from_json(said)).arrays["rows"]
                    expected = rows.copy()
                    readers += 1
                    os.write(to_owner[1], b"x")
                os.close(to_reader[0]), os.close(to_owner[1])
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                reap()
                if rows is not None and (rows != expected).any():
                    failures.append((number, when, whom, "a reader's data changed"))
                rows = None
                left = set(os.listdir(folder)), named()
                if left != mine:
                    failures.append((number, when, whom, str(left)))
                    mine = left
                if (attach(theirs).arrays["rows"] != 3).any() or len(entries()) != 1:
                    failures.append((number, when, whom, "a living owner was harmed"))
                if code not in (0, -9):
                    failures.append((number, when, whom, f"ended with {code}"))
                points += 1
                if code == 0:
                    break
    maps = open("/proc/self/maps").read().count("sharedmask-")
    living.release()
    print(json.dumps({"failures": failures, "points": points, "readers": readers, "maps": maps}))
'''


@pytest.mark.timeout(900)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(("scenario", "least"), [("life", 100), ("image", 100), ("reap", 30), ("attach", 15)])
def test_kill_at_every_call(scenario, least, store, tmp_path, registry_dir):
    """Publishing, renaming, closing, loading, reaping, attaching: one reap() leaves nothing."""
    run = save(tmp_path / "run.nii.gz", bold())
    done = python(KILLS, scenario, store, run, helpers=True, timeout=800)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["failures"] == []
    assert found["points"] > least
    assert found["maps"] <= 1
    if scenario in ("life", "image"):
        assert found["readers"] > 10
    assert os.listdir(registry_dir) == []


# --- T-exit, T-group, T-tracker, T-reader ---


@pytest.mark.parametrize(
    "end",
    [
        "",
        "sys.exit(3)",
        "raise RuntimeError('no')",
        "os._exit(0)",
        "os.abort()",
        "os.kill(os.getpid(), 15)",
        "os.kill(os.getpid(), 2)",
        "os.kill(os.getpid(), 1)",
        "os.kill(os.getpid(), 9)",
        "os.kill(os.getpid(), 11)",
        "os.execvp('true', ['true'])",
    ],
)
@pytest.mark.parametrize("store", STORES)
def test_exit_of_the_owner(end, store, registry_dir):
    done = python(OWNER + f"    {end}", store)
    name = json.loads(done.stdout.split()[1])["name"]
    reap()
    assert_no_leak(registry_dir, name)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(
    "order",
    [order for n in (1, 2, 3) for order in itertools.permutations(("owner", "tracker", "reader"), n)]
    + [("group",)],
    ids="-".join,
)
def test_kills_in_all_orders(order, store, registry_dir):
    """Owner, tracker and a reader; who is left has the right data, the next use leaves nothing."""
    if store == "memfd" and "tracker" in order:
        pytest.skip("anonymous memory has no tracker")
    reader = """
        import sys, time
        from sharedmask.storage.segment import Handle, attach
        rows = attach(Handle.from_json(sys.argv[1])).arrays["rows"]
        print("ready", flush=True)
        for _ in sys.stdin:
            print(int(rows.sum()), flush=True)
    """
    with running(OWNER + "    sys.stdin.read()\n    owned.release()", store, stdin=subprocess.PIPE) as owner:
        handle, tracker = handle_of(owner), int(owner.said[1])
        with running(reader, owner.said[0], stdin=subprocess.PIPE) as other:
            rows = attach(handle).arrays["rows"]
            for whom in order:
                if whom == "group":
                    kill_group(owner)
                else:
                    pid = {"owner": owner.pid, "tracker": tracker, "reader": other.pid}[whom]
                    os.kill(pid, signal.SIGKILL)
                    assert gone([pid])
                np.testing.assert_array_equal(rows, ROWS)
                if "reader" not in order:
                    other.stdin.write("\n")
                    other.stdin.flush()
                    assert other.stdout.readline() == "105\n"
                if not {"owner", "group"} & set(order):
                    assert reap() == []
                    assert [entry.handle for entry in entries()] == [handle]
        owner.stdin.close()
        owner.wait(30)
        owner.stdin = None
    del rows
    reap()
    assert_no_leak(registry_dir, handle.name)


LOADING = """
    import sys, time
    from sharedmask import SharedImage
    from sharedmask.sources import loader as loading

    load = loading.load
    def slow(source, rows, **options):
        load(source, rows, **options)
        print("ready", flush=True)
        time.sleep(60)
    loading.load = slow
    with SharedImage(sys.argv[1]) as bold:
        bold.load()
"""


MASKING = """
    import sys, time
    import numpy as np
    from sharedmask import SharedImage
    from sharedmask.workers import pool

    with SharedImage(sys.argv[1]) as bold:
        mask = np.ones(bold.shape[:3], bool)
        bold.mask_parallel([mask], n_jobs=2, prefer="processes")
        print("ready", *(w.process.pid for w in pool._pools[()]._idle), flush=True)
        bold.map(lambda signals: time.sleep(60), [mask, mask], n_jobs=2)
"""


@pytest.mark.parametrize("script", [LOADING, MASKING], ids=["loading", "masking"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nothing_is_left_after_a_signal(script, number, run, registry_dir, segments_of_this_test):
    with running(script, run) as child:
        time.sleep(0.2)
        workers = [int(pid) for pid in child.said]
        child.send_signal(number)
        child.wait(30)
        assert gone(workers)
        reap()
        assert os.listdir(registry_dir) == []
        assert not segments_of_this_test()


@pytest.mark.parametrize("script", [LOADING, MASKING], ids=["loading", "masking"])
def test_nothing_is_left_after_everything_is_killed_at_once(script, run, registry_dir, segments_of_this_test):
    with running(script, run) as child:
        workers = [int(pid) for pid in child.said]
        kill_group(child)
        assert gone(workers)
        assert segments_of_this_test()
        done = sharedmask("gc")
        assert (done.returncode, done.stderr) == (0, "")
        assert "removed sharedmask-" in done.stdout
        assert not segments_of_this_test()
        assert os.listdir(registry_dir) == []


def test_a_killed_worker_is_an_error_and_the_next_call_works(run):
    def die(signals):
        os.kill(os.getpid(), signal.SIGKILL)

    masks = random_masks(4)
    with SharedImage(run) as shared:
        with pytest.raises(SharedMaskError, match="killed by SIGKILL"):
            shared.map(die, masks, n_jobs=2)
        assert len(shared.map(np.sum, masks, n_jobs=2)) == 4
