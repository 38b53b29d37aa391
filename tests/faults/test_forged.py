"""Forged handles, headers and records are refused, whatever is in them."""

import contextlib
import dataclasses
import json
import os
import secrets

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from owners import GEOMETRY, ROWS, STORES

from sharedmask import SharedImage
from sharedmask.errors import AttachError, SegmentError
from sharedmask.storage import container, segment
from sharedmask.storage.registry import OwnedSegment, entries, reap
from sharedmask.storage.segment import Handle, Segment, attach

_numbers = st.one_of(
    st.integers(-2, 70_000), st.integers(-(2**80), 2**80), st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64])
)


_texts = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(categories=None), max_size=5),
    st.sampled_from(
        ["", "/", "../x", "\0", "shm", "memfd", "sharedmask-0123456789abcdef", "\ud800", "x" * 9000]
    ),
)


_anything = st.recursive(
    st.one_of(st.none(), st.booleans(), _numbers, st.floats(), _texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_texts, inner, max_size=3)),
    max_leaves=5,
)


_dtypes = st.one_of(
    st.sampled_from(
        ["<i2", ">f8", "|b1", "|O", "<f3", "<i0", "|u0", "|b7", "=f99999999999999999999", "<M8[s]"]
    ),
    st.from_regex(r"[<>|=][biuf]\d+", fullmatch=True),
    _anything,
)


_shapes = st.one_of(st.lists(_numbers, max_size=4), st.lists(st.just(1), max_size=70), _anything)


_spec = st.fixed_dictionaries({}, optional={"dtype": _dtypes, "shape": _shapes, "offset": _anything})


_fuzz = {"database": None, "suppress_health_check": list(HealthCheck)}


def _fuzzed(test, cases):
    settings(max_examples=cases, **_fuzz)(test)()


CASES = [
    60,
    pytest.param(1000, marks=pytest.mark.long),
    pytest.param(100_000, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("cases", CASES)
def test_sec_forged_handles_are_refused(cases, store):
    with contextlib.closing(_Shared(store)) as shared:
        facts = json.loads(shared.handle.to_json())
        typed = {str: _texts, int: _numbers, float: st.floats()}
        kinds = Handle.__annotations__
        fields = {name: st.one_of(typed[kinds[name]], _anything) for name in facts}
        changes = st.fixed_dictionaries({}, optional=fields).filter(len)

        @given(changes)
        def try_it(change):
            segment._attached.clear()
            with contextlib.suppress(AttachError):
                found = attach(Handle.from_json(json.dumps({**facts, **change})))
                np.testing.assert_array_equal(found.arrays["rows"], ROWS)

        _fuzzed(try_it, cases)


@pytest.mark.parametrize("cases", CASES)
def test_sec_what_is_no_handle_is_refused(cases):
    @given(st.one_of(_anything.map(json.dumps), st.text(max_size=200), st.binary(max_size=200)))
    def try_it(text):
        with pytest.raises(AttachError):
            attach(Handle.from_json(text))

    _fuzzed(try_it, cases)


class _Shared:
    """A segment whose owner may forge its header."""

    def __init__(self, store="shm"):
        self._segment = Segment(secrets.token_hex(16), GEOMETRY, store)
        self._segment.array("rows")[:] = 7
        self.handle = self._segment.share("run", {})

    def write(self, page):
        path = f"/dev/shm/{self.handle.name}"
        os.chmod(path, 0o600)
        with open(path, "r+b") as file:
            file.write(page)

    def header(self):
        with open(f"/dev/shm/{self.handle.name}", "rb") as file:
            return container.parse_header(file.read())[0]

    def close(self):
        self._segment.store.release()
        vars(self._segment).pop("_map", None)


@pytest.mark.parametrize("cases", CASES)
def test_sec_forged_headers_are_refused(cases):
    """Headers with a right digest and any content: refused, or arrays within the segment."""
    with contextlib.closing(_Shared()) as shared:
        facts, handle = shared.header(), shared.handle
        array = st.tuples(_texts, _spec).map(
            lambda pair: {"arrays": {pair[0]: {**facts["arrays"]["rows"], **pair[1]}}}
        )
        whole = st.fixed_dictionaries(
            {}, optional={"arrays": _anything, "meta": _anything, "token": _anything, "nbytes": _numbers}
        )

        @given(st.one_of(array, whole, st.lists(_anything, max_size=2)))
        def try_it(change):
            changed = {**facts, **change} if isinstance(change, dict) else change
            try:
                shared.write(container.header(changed, 4096))
            except (SegmentError, UnicodeEncodeError):
                return
            segment._attached.clear()
            with contextlib.suppress(AttachError):
                for found in attach(handle).arrays.values():
                    assert found.nbytes <= handle.nbytes - 4096
                    assert not found.flags.writeable
                    found.tobytes()

        _fuzzed(try_it, cases)


@pytest.mark.parametrize("cases", CASES)
def test_sec_damaged_headers_are_refused(cases):
    with contextlib.closing(_Shared()) as shared:
        with open(f"/dev/shm/{shared.handle.name}", "rb") as file:
            page = file.read(4096)

        @given(st.integers(0, 4095), st.integers(1, 255))
        def try_it(position, change):
            damaged = bytearray(page)
            damaged[position] ^= change
            shared.write(damaged)
            segment._attached.clear()
            with pytest.raises(AttachError):
                attach(shared.handle)

        _fuzzed(try_it, cases)


@pytest.mark.parametrize("shape", [[0, 10**30], [10**30, 0], [0, 2**63]])
def test_sec_an_empty_array_of_impossible_extent_is_refused(shape):
    with contextlib.closing(_Shared()) as shared:
        facts = shared.header()
        facts["arrays"]["rows"]["shape"] = shape
        shared.write(container.header(facts, 4096))
        try:
            raised = type(attach(shared.handle))
        except Exception as error:  # its traceback would hold the map
            raised = type(error)
        assert raised is AttachError


@pytest.mark.parametrize("store", STORES)
def test_sec_a_segment_that_is_no_image_is_no_image(store):
    owned = OwnedSegment("output", GEOMETRY, store)
    handle = owned.share({})
    try:
        try:
            raised = type(SharedImage.attach(handle))
        except Exception as error:
            raised = type(error)
        assert raised is AttachError
    finally:
        owned.release()


@pytest.mark.parametrize("cases", CASES)
def test_sec_forged_records_are_passed_over(cases, registry_dir):
    """Records that somebody holds: listed with facts of the right types, or not at all."""
    import fcntl

    entries()
    path = registry_dir / f"{'0' * 32}.json"
    keys = ("token", "name", "label", "pid", "created", "ino")
    content = st.one_of(
        st.fixed_dictionaries({}, optional=dict.fromkeys(keys, _anything)),
        st.fixed_dictionaries(dict.fromkeys(keys[:-1], _anything)),
        _anything,
    )

    @given(content)
    def try_it(value):
        with open(path, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            json.dump(value, file)
            file.flush()
            for entry in entries():
                assert [type(fact) for fact in dataclasses.astuple(entry)[:5]] == [str, str, str, int, float]
            assert reap() == []

    _fuzzed(try_it, cases)
    path.unlink()
