"""Containers: a header of any length and its arrays come back as they were, or are refused."""

import json
import os
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from sharedmask.errors import AttachError, SegmentError
from sharedmask.storage import container
from sharedmask.system import process

KEY, OTHER = 40 * "a", 40 * "b"

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_geometries = st.dictionaries(
    st.text(max_size=40),
    st.tuples(npst.array_shapes(min_dims=0, max_side=20, min_side=0), npst.scalar_dtypes()),
    max_size=60,
)
_arrays = st.lists(
    npst.arrays(
        npst.integer_dtypes(endianness="?") | npst.floating_dtypes(endianness="?"),
        npst.array_shapes(min_dims=0, max_dims=3, max_side=6),
    ).map(lambda array: np.asfortranarray(array) if array.size % 2 else array[::-1] if array.ndim else array),
    max_size=3,
)


def forged(text):
    """A header with a right digest and any content."""
    return container._PREFIX.pack(container.MAGIC, len(text), container._digest(text)) + text


def written(path, arrays, key=KEY):
    with open(path, "wb") as file:
        assert container.write(file.fileno(), arrays, key) == os.path.getsize(path)
    return path


def found(path, key=KEY):
    with open(path, "rb") as file:
        return container.read(file.fileno(), key)


# --- headers -------------------------------------------------------------------------------------


@given(geometry=_geometries, facts=st.dictionaries(st.text(), _json, max_size=4))
@settings(max_examples=30)
def test_any_facts_fit_the_layout_that_knew_them(geometry, facts):
    facts.pop("arrays", None)
    place = container.layout(geometry, facts)
    page = container.header({"arrays": place.specs, **facts}, place.header_bytes)
    assert len(page) == place.header_bytes == container._PAGE * (len(page) // container._PAGE)
    back, size = container.parse_header(page)
    assert (back, size) == ({"arrays": place.specs, **facts}, place.header_bytes)


@given(geometry=_geometries)
@settings(max_examples=40)
def test_arrays_lie_apart_behind_the_header(geometry):
    place = container.layout(geometry)
    assert list(place.specs) == list(geometry)
    end = place.header_bytes
    for spec in place.specs.values():
        assert spec["offset"] == end
        assert spec["offset"] % 64 == 0
        nbytes = int(np.prod(spec["shape"], dtype=int)) * np.dtype(spec["dtype"]).itemsize
        end += -(-nbytes // 64) * 64
    assert end == place.nbytes == container.projected(geometry)


def test_a_header_of_a_megabyte_is_read_from_a_file(tmp_path):
    facts = {"text": "x" * 2**20}
    size = container.layout({}, facts).header_bytes
    (tmp_path / "long").write_bytes(container.header(facts, size))
    with open(tmp_path / "long", "rb") as file:
        assert container.read_header(file.fileno()) == (facts, size)


def test_facts_that_nobody_made_room_for_are_refused():
    with pytest.raises(SegmentError, match=r"take \d+ bytes, more than 4056"):
        container.header({"text": "x" * 5000}, 4096)


@given(position=st.integers(0, 4095), change=st.integers(1, 255))
@settings(max_examples=80)
def test_a_byte_changed_anywhere_in_a_header_is_noticed(position, change):
    page = bytearray(container.header({"meta": {}}, 4096))
    page[position] ^= change
    with pytest.raises(AttachError):
        container.parse_header(bytes(page))


@given(length=st.integers(0, 8191))
@settings(max_examples=40)
def test_a_header_that_was_cut_is_noticed(length, tmp_path):
    page = container.header({"text": "x" * 5000}, 8192)[:length]
    (tmp_path / "cut").write_bytes(page)
    with pytest.raises(AttachError), open(tmp_path / "cut", "rb") as file:
        container.read_header(file.fileno())
    with pytest.raises(AttachError):
        container.parse_header(page)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"3", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b'{"a"'], ids=range(7)
)
def test_a_right_digest_of_no_facts_is_refused(text):
    with pytest.raises(AttachError, match="not a header of ours"):
        container.parse_header(forged(text))


def test_a_length_beyond_the_file_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    page = container.header({}, 4096)
    (tmp_path / "forged").write_bytes(page[:16] + (2**62).to_bytes(8, "little") + page[24:])
    monkeypatch.setattr(container, "parse_header", None)
    with open(tmp_path / "forged", "rb") as file, pytest.raises(AttachError, match="ends at 46116860"):
        container.read_header(file.fileno())


def test_another_version_is_none_of_ours():
    page = container.header({}, 4096)
    for magic in (container.OURS + b"\0\0\0\0\1", b"smresult" + bytes(8)):
        with pytest.raises(AttachError, match="none of ours"):
            container.parse_header(magic + page[16:])


# --- arrays --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        3,
        {},
        {"offset": 0, "shape": [1], "dtype": "<i2"},
        {"offset": 64, "shape": [2**62], "dtype": "<i2"},
        {"offset": 64, "shape": [0, 2**62], "dtype": "<i2"},
        {"offset": 64, "shape": [-1], "dtype": "<i2"},
        {"offset": 2**70, "shape": [1], "dtype": "<i2"},
        {"offset": 64, "shape": [True], "dtype": "<i2"},
        {"offset": 64, "shape": "1", "dtype": "<i2"},
        {"offset": 64, "shape": [33], "dtype": "<i2"},
        {"offset": 64, "shape": [1], "dtype": "|O"},
        {"offset": 64, "shape": [1], "dtype": "<i3"},
        {"offset": 64, "shape": [1], "dtype": 2},
        {"offset": 64, "shape": [1], "dtype": "<i2", "order": "Z"},
        {"offset": 64, "shape": [1], "dtype": "<i2", "order": 3},
    ],
    ids=str,
)
def test_impossible_arrays_are_refused(spec):
    with pytest.raises(AttachError):
        container.arrays_in(bytearray(128), {"a": spec}, 64)


@pytest.mark.parametrize("specs", [None, 3, [], "arrays", [{"offset": 64}]], ids=str)
def test_what_describes_no_arrays_is_refused(specs):
    with pytest.raises(AttachError, match="describes no arrays"):
        container.arrays_in(bytearray(128), specs, 64)


@given(arrays=_arrays)
@settings(max_examples=40)
def test_arrays_come_back_as_they_were(arrays, tmp_path):
    back = found(written(tmp_path / "entry", arrays))
    assert len(back) == len(arrays)
    for one, other in zip(back, arrays, strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
        assert one.flags.writeable
        assert one.flags.f_contiguous == other.flags.f_contiguous or not other.flags.forc


@given(data=st.data())
@settings(max_examples=80)
def test_a_byte_changed_anywhere_is_noticed(data, tmp_path):
    content = bytearray(written(tmp_path / "entry", [np.arange(7), np.ones((3, 2), "f4")]).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / "damaged").write_bytes(content)
    with pytest.raises(AttachError):
        found(tmp_path / "damaged")


@pytest.mark.parametrize("n_cpus", [1, 2, 3, 7])
@pytest.mark.parametrize("n_bytes", [0, 1, 63, 64, 1001])
def test_a_checksum_is_the_same_on_all_cores(monkeypatch, n_cpus, n_bytes):
    monkeypatch.setattr(container, "_PART_BYTES", 64)
    monkeypatch.setattr(process, "n_cpus", lambda: n_cpus)
    data = np.random.default_rng(n_bytes).bytes(n_bytes)
    assert container._crc32_of(memoryview(data)) == zlib.crc32(data)


@given(length=st.integers(0, 6000))
@settings(max_examples=50)
def test_a_file_that_is_too_short_or_too_long_is_noticed(length, tmp_path):
    content = written(tmp_path / "entry", [np.arange(100)]).read_bytes()
    (tmp_path / "damaged").write_bytes((content + bytes(2000))[: length + (length >= len(content))])
    with pytest.raises(AttachError):
        found(tmp_path / "damaged")


@given(facts=st.dictionaries(st.sampled_from(["key", "crc", "arrays", "x"]), _json, max_size=4))
@settings(max_examples=60)
def test_a_forged_header_is_refused_or_has_no_arrays(facts, tmp_path):
    text = json.dumps({"key": KEY, "crc": 0, "arrays": {}, **facts}).encode()
    (tmp_path / "forged").write_bytes(forged(text))
    try:
        back = found(tmp_path / "forged")
    except AttachError:
        return
    assert back == []


def test_an_entry_of_another_key_is_not_taken(tmp_path):
    with pytest.raises(AttachError):
        found(written(tmp_path / "entry", [np.arange(3)], OTHER))


def test_large_arrays_are_mapped_and_writing_to_them_changes_no_entry(tmp_path):
    big = np.arange(5_000_000.0).reshape(1000, 5000).T
    path = written(tmp_path / "entry", [big])
    [back] = found(path)
    assert back.flags.f_contiguous
    back[:] = 0
    np.testing.assert_array_equal(found(path)[0], big)
