"""Views that travel: by name and place to another process, as values where computed."""

import pickle

import numpy as np
import pytest
from children import python

from sharedmask.errors import AttachError
from sharedmask.storage import segment as segments
from sharedmask.storage.segment import attach


@pytest.mark.parametrize(
    "take",
    [
        lambda a: a,
        lambda a: a.T,
        lambda a: a[1:, ::2],
        lambda a: a[::-1, 4:0:-2],
        lambda a: a[1],
        lambda a: a[:, None, 2:],
        lambda a: a.reshape(5, 3),
        lambda a: a.view("u1")[:, 1::2],
        lambda a: a.view("u2"),
        lambda a: np.broadcast_to(a[0], (4, 5), subok=True),
    ],
)
def test_views_arrive_as_views_of_the_same_memory(handle, take):
    view = attach(handle).view("rows")
    taken = take(view)
    sent = pickle.dumps(taken)
    arrived = pickle.loads(sent)
    assert len(sent) < 1024
    np.testing.assert_array_equal(arrived, taken)
    assert arrived.dtype == taken.dtype
    assert np.shares_memory(arrived, view)
    assert not arrived.flags.writeable


@pytest.mark.parametrize(
    "compute",
    [
        lambda a: a + 1,
        lambda a: -a,
        lambda a: a.astype("f8"),
        lambda a: np.sqrt(a),
        lambda a: a.copy(),
        lambda a: a[[0, 2]],
        lambda a: a[a > 3],
        lambda a: a.sum(axis=0),
        lambda a: np.concatenate([a, a]),
        lambda a: a[:0],
    ],
)
def test_what_is_computed_travels_by_value(handle, compute):
    computed = compute(attach(handle).view("rows"))
    arrived = pickle.loads(pickle.dumps(computed))
    assert type(arrived) is np.ndarray
    np.testing.assert_array_equal(arrived, computed)
    assert arrived.flags.writeable


def test_arithmetic_gives_plain_arrays_and_scalars(handle):
    view = attach(handle).view("rows")
    assert type(view + 1) is np.ndarray
    assert type(np.add.reduce(view)) is np.ndarray
    assert isinstance(view.sum(), np.int64)
    assert isinstance(view[0, 0], np.int16)


def test_a_view_whose_segment_is_gone_is_refused_elsewhere(handle, segment):
    sent = pickle.dumps(attach(handle).view("rows"))
    segment.store.release()
    done = python(f"import pickle; pickle.loads({sent!r})")
    assert "AttachError" in done.stderr
    assert "is gone" in done.stderr


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "dtype"),
    [
        (10**9, (1,), (2,), "<i2"),
        (4096, (10**6,), (2,), "<i2"),
        (4096, (3,), (-4096,), "<i2"),
        (-8, (3,), (2,), "<i2"),
        (4096, (3,), (2,), "|O"),
        (4096, (2, 2), (2,), "<i2"),
    ],
)
def test_views_outside_of_the_segment_are_refused(handle, offset, shape, strides, dtype):
    with pytest.raises((AttachError, ValueError)):
        segments.view_of(handle.to_json(), offset, shape, strides, dtype)


def test_an_attachment_survives_limits_of_the_reader(handle):
    script = f"""
        import resource
        from sharedmask.errors import AttachError
        from sharedmask.storage.segment import Handle, attach
        handle = Handle.from_json({handle.to_json()!r})
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            attach(handle)
        except AttachError as error:
            print("refused:", error)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        print(int(attach(handle).arrays["rows"].sum()))
    """
    done = python(script)
    assert "refused: the shared image run.nii.gz cannot be opened: " in done.stdout, done.stderr
    assert done.stdout.endswith("105\n")
