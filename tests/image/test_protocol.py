"""Messages: what is none, what cannot be done, errors that arrive as what they are."""

import socket
import struct
from contextlib import suppress

import numpy as np
import pytest
from children import kill_group
from images import truth
from serving import BODY, framed, serving

from sharedmask import Coordinator, SharedImage
from sharedmask.errors import (
    AttachError,
    DamagedImageError,
    SharedMaskError,
)
from sharedmask.image import protocol
from sharedmask.storage.registry import reap


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 1000,
        struct.pack(">I", 2**32 - 1) + b"x",
        struct.pack(">I", 64 * 1024 + 1) + b"x" * 70_000,
        framed(b""),
        framed(b"\xff\xfe\x00"),
        framed(b"{"),
        framed(b"[]"),
        framed(b"null"),
        framed(b'"version"'),
        framed(b"{}"),
        framed(b'{"version": 2, "verb": "list"}'),
        framed(b'{"version": "1", "verb": "list"}'),
        framed(b"[" * 60_000),
        framed(b'{"version":' * 5000),
        framed(BODY)[:-1],
        framed(BODY)[:2],
        b"",
    ],
    ids=range(18),
)
def test_what_is_no_message_ends_the_connection_and_nothing_else(sent, run):
    with Coordinator():
        with protocol.connect(timeout=30) as connection:
            with suppress(BrokenPipeError):
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
            answer = protocol.receive(connection)
            assert answer is None or answer["error"] == "AttachError"
        with SharedImage.connect(run) as image:
            np.testing.assert_array_equal(image.array, truth(run))


@pytest.mark.parametrize(
    "request_",
    [
        {"verb": "destroy"},
        {"verb": None},
        {"verb": ["open"]},
        {},
        {"verb": "open"},
        {"verb": "open", "source": None},
        {"verb": "open", "source": {"a": 1}},
        {"verb": "open", "source": "a\0b"},
        {"verb": "open", "source": "\ud800"},
        {"verb": "open", "source": "x" * 5000},
        {"verb": "open", "source": "/"},
        {"verb": "open", "source": ""},
    ],
    ids=range(12),
)
def test_what_it_cannot_do_is_an_error_and_the_connection_goes_on(request_):
    with Coordinator(), protocol.connect(timeout=30) as connection:
        protocol.send(connection, request_)
        answer = protocol.receive(connection)
        assert set(answer) == {"version", "error", "message"}
        assert answer["message"]
        assert protocol.ask(connection, "list")["images"] == []


def test_dropping_nothing_drops_nothing():
    with Coordinator(), protocol.connect(timeout=30) as connection:
        for name in (None, 3, "", "nothing"):
            assert protocol.ask(connection, "drop", name=name)["dropped"] == 0


def test_a_client_that_says_nothing_keeps_nobody_waiting(run):
    with Coordinator(), protocol.connect() as silent, protocol.connect() as half:
        half.sendall(framed(BODY)[:7])
        with SharedImage.connect(run) as image:
            np.testing.assert_array_equal(image.array, truth(run))
        assert silent.fileno() > 0


def test_errors_of_other_classes_arrive_as_ours():
    for kind in ("OSError", "ValueError", "Any", "__name__", "builtins", "SharedMaskWarning"):
        assert type(protocol._error(kind, "so")) is SharedMaskError
    assert type(protocol._error("DamagedImageError", "so")) is DamagedImageError


def test_a_coordinator_that_goes_away_is_an_error(run):
    with serving() as child:
        connection = protocol.connect()
        kill_group(child)
        with connection, pytest.raises(AttachError, match="went away"):
            protocol.ask(connection, "list")
    reap()


def test_a_request_that_is_too_long_is_answered_with_its_length():
    with Coordinator(), pytest.raises(AttachError, match=r"a message of 700\d\d bytes; 65536 are allowed"):
        SharedImage.connect("x" * 70_000)


def test_a_list_of_any_length_arrives(monkeypatch):
    many = [{"token": f"{i:032x}", "name": f"run-{i}.nii.gz", "clients": 0} for i in range(5000)]
    monkeypatch.setattr(Coordinator, "images", lambda self: many)
    with Coordinator():
        assert protocol.clients() == {image["token"]: 0 for image in many}
