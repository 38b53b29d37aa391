"""Bytes that are read ahead."""

import contextlib
import gc
import random
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from sharedmask.errors import RemoteError, SourceChangedError
from sharedmask.remote import objects, retries
from sharedmask.remote.http import HttpServer
from sharedmask.remote.objects import RemoteFile, exists, listed, look, together

CONTENT = random.Random(5).randbytes(500_000)


@pytest.fixture
def url(server):
    server.files["a.bin"] = CONTENT
    return f"{server.url}/a.bin"


@pytest.mark.parametrize("size", [1, 4096, 65536, 10**6])
def test_pieces_of_any_size(url, size):
    size = max(size, 1000) if size == 1 else size
    with RemoteFile(url) as file:
        assert b"".join(iter(lambda: file.read(size), b"")) == CONTENT
        assert file.read(10) == b""


def test_the_head_is_asked_for_once(server, url):
    look(url)
    for _ in range(3):
        with RemoteFile(url) as file:
            assert file.read(1000) == CONTENT[:1000]
    assert len(server.requests) == 1


def test_together(server, url):
    """No answer comes before all were asked for."""
    server.files["b.bin"], server.listing = b"two", True
    server.meeting = threading.Barrier(4, timeout=20)
    urls = [url, f"{server.url}/b.bin", f"{server.url}/none.bin"]
    with together(url, urls[1:], [server.url]):
        assert look(url).content == CONTENT[:65536]
        assert [exists(one) for one in urls] == [True, True, False]
        assert listed(server.url) == ("a.bin", "b.bin")
        assert look(url).content == CONTENT[:65536]
    assert len(server.requests) == 4
    server.meeting = None
    server.files["a.bin"] = b"another"
    assert look(url).content == b"another"


def test_of_what_need_not_be_there_silence_is_an_answer_sooner(server, url):
    """Some servers cut the line of who asks for what they lack."""
    server.drops = True
    others = [f"{server.url}/b.json", f"{server.url}/c.json"]
    with together(url, others, []):
        assert [exists(one) for one in (url, *others)] == [True, False, False]
    assert not exists(f"{server.url}/d.json")
    assert {server.count(name) for name in ("b.json", "c.json", "d.json")} == {retries.TRIES_OF_OPTIONAL}
    assert server.count("a.bin") == 1
    with pytest.raises(RemoteError, match="Remote end closed"):
        look(f"{server.url}/none.bin")
    assert server.count("none.bin") == retries.TRIES


def test_a_busy_server_has_what_need_not_be_there(server, url):
    server.answers = [(503, {})] * (retries.TRIES - 1)
    assert exists(url)


def test_who_is_not_needed_is_not_waited_for(server, url):
    server.stalls = [1000, 1000]
    with together(url, [], []):
        pass
    assert not [one for one in threading.enumerate() if one.name.startswith("sharedmask-remote")]


def test_nothing_is_held_of_who_asked(url):
    with RemoteFile(url) as file:
        file.readall()
    del file
    gc.collect()
    assert not [one for one in gc.get_objects() if isinstance(one, HttpServer)]


def test_who_interrupts_does_not_wait_for_servers_that_say_nothing(monkeypatch):
    monkeypatch.setattr(retries, "TIMEOUT", 60)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"

        def interrupted():
            with contextlib.suppress(KeyboardInterrupt), together(f"{url}/a.bin", [], [url]):
                lines.extend(silent.accept()[0] for _ in range(2))
                assert all(line.recv(1) for line in lines)
                raise KeyboardInterrupt

        lines = []
        caller = threading.Thread(target=interrupted, daemon=True)
        caller.start()
        caller.join(30)
        for line in lines:
            line.close()
        assert not caller.is_alive()
    assert not objects._folders, "that a folder was not listed is no answer"


@pytest.mark.parametrize("whole", [True, False])
def test_replaced_behind_an_answer(server, url, whole):
    """As by a copy over the file that a server is sending: the answer's head told the first one's tag."""
    with pytest.raises(SourceChangedError, match=r"changed while it was read"), RemoteFile(url) as file:
        if whole:
            server.after = lambda *_: server.files.update({"a.bin": CONTENT[::-1]})
            file.readall()
        else:
            server.stalls = [150_000]
            assert len(file.read(65536) + file.read(1)) == 65537
            server.files["a.bin"] = CONTENT[::-1]


@pytest.mark.parametrize("error, told", [(KeyError, KeyError), (OSError, SourceChangedError)])
def test_errors_that_a_change_may_explain(server, url, error, told):
    with pytest.raises(told), RemoteFile(url) as file:
        server.stalls = [150_000]
        assert len(file.read(65536) + file.read(1)) == 65537
        server.files["a.bin"] = CONTENT[::-1]
        raise error


def test_it_can_begin_again(url):
    with RemoteFile(url) as file:
        file.read(100_000)
        assert file.seek(0) == 0
        assert file.readall() == CONTENT
        with pytest.raises(OSError, match="forward"):
            file.seek(7)


def test_heads_are_few(server):
    for n in range(objects._KEPT + 5):
        server.files[str(n)] = b"x" * n
        look(f"{server.url}/{n}")
    assert len(objects._heads) == objects._KEPT


def test_no_thread_stays(url):
    before = threading.active_count()
    for _ in range(3):
        with RemoteFile(url) as file:
            file.read(65536)
            file.read(10)
    assert not [one for one in threading.enumerate() if one.name.startswith("sharedmask-remote")]
    while threading.active_count() > before + 1:  # the server's end when they see that the lines have
        time.sleep(0.01)


def test_without_another_thread(url, monkeypatch):
    class Refused(threading.Thread):
        def start(self):
            raise RuntimeError("can't start new thread")

    look(url)
    with RemoteFile(url) as file:
        with monkeypatch.context() as patched:
            patched.setattr(objects, "threading", SimpleNamespace(Thread=Refused))
            assert file.read(65536) + file.read(1) == CONTENT[:65537]
        assert file.readall() == CONTENT[65537:]


def test_identities(server, url):
    first = look(url).identity
    assert look(url).identity == first
    server.files["a.bin"] = CONTENT[::-1]
    assert look(url).identity != first
    server.etags = server.dates = False
    bare = look(url).identity
    server.files["a.bin"] = CONTENT
    assert look(url).identity != bare


def test_what_is_there(server, url):
    assert exists(url)
    assert not exists(url + "x")
    server.listing = True
    assert listed(server.url) == ("a.bin",)
