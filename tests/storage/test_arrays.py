"""Arrays of anybody's in shared memory: the same values everywhere, nothing left, outputs that end."""

import multiprocessing
import os
import pickle
import signal

import cloudpickle
import numpy as np
import pytest
from children import python, running
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sharedmask import share, share_output
from sharedmask.errors import ClosedImageError, MemoryLimitError, ParameterError, SegmentError
from sharedmask.storage import memory, registry

STORES = sorted(memory.KINDS)
DTYPES = ["?", "i1", "u2", "<i4", ">i8", "f2", "<f4", ">f8", "c8", "c16"]


def same(got, expected):
    assert (got.dtype.str, got.shape) == (expected.dtype.str, expected.shape)
    assert got.tobytes() == expected.tobytes()


@settings(max_examples=60)
@given(
    values=st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    ),
    order=st.sampled_from(["C", "F", "strided"]),
    store=st.sampled_from(STORES),
)
def test_values_dtype_shape_and_order_stay(values, order, store):
    if order == "strided":
        told = values[::-1] if values.ndim else values
    else:
        told = np.asarray(values, order=order)
    with share(told, store=store) as shared:
        array = shared.array
        same(array, told)
        assert not array.flags.writeable
        if order == "F" and min(values.shape, default=1) > 1:
            assert array.flags.f_contiguous
        if told.size:  # NumPy's own pickle of an empty array forgets its byte order
            same(pickle.loads(pickle.dumps(array)), told)
    with pytest.raises(ClosedImageError):
        shared.array  # noqa: B018
    same(array, told)  # what looks at it keeps it


def _sum(array):
    return float(array.sum()), len(pickle.dumps(array)), array.flags.writeable


@pytest.mark.some(1)
@pytest.mark.parametrize("store", STORES)
def test_workers_attach_and_do_not_copy(store):
    values = np.arange(40_000.0).reshape(200, 200)
    with share(values, store=store) as shared, multiprocessing.get_context("spawn").Pool(2) as pool:
        told = pool.map(_sum, [shared.array[i : i + 2] for i in range(4)])
    for i, (total, nbytes, writable) in enumerate(told):
        assert total == values[i : i + 2].sum()
        assert nbytes < 1500
        assert not writable


@pytest.mark.long
@pytest.mark.parametrize("store", STORES)
def test_lokys_workers_attach_and_fill(store):
    """In a process of its own: loky's workers stay."""
    script = f"""
import numpy as np, sharedmask
from joblib import Parallel, delayed

def copy(given, out, i):
    out[i] = given[i] * 2

with sharedmask.share(np.arange(6.0), store={store!r}) as shared:
    with sharedmask.share_output(6, store={store!r}) as output:
        Parallel(2)(delayed(copy)(shared.array, output.array, i) for i in range(6))
        print(output.array.tolist())
"""
    done = python(script)
    assert done.stdout.strip() == "[0.0, 2.0, 4.0, 6.0, 8.0, 10.0]", done.stderr


def _fill(out, i):
    out[i] = i + 1


@pytest.mark.some(1)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_workers_fill_an_output_that_its_owner_seals(store, order):
    with share_output((6, 5), "f4", order=order, store=store) as output:
        assert output.array.flags.f_contiguous == (order == "F")
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            pool.starmap(_fill, [(output.array, i) for i in range(6)])
        sealed = output.seal()
        np.testing.assert_array_equal(sealed, np.repeat(np.arange(1, 7, dtype="f4")[:, None], 5, 1))
        assert not sealed.flags.writeable
        assert not pickle.loads(pickle.dumps(sealed)).flags.writeable
        same(output.array, sealed)
        same(output.seal(), sealed)


@pytest.mark.parametrize("store", STORES)
def test_what_is_still_held_for_writing_is_not_sealed(store):
    with share_output(3, "i4", store=store) as output:
        held = output.array
        with pytest.raises(SegmentError, match="held for writing"):
            output.seal()
        held[:] = 7
        del held
        assert output.seal().tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.array(["a"]), "<U1"),
        (np.array([object()]), "object"),
        (np.zeros(2, "i4,f4"), "i4"),
        (np.array(["2020"], "M8[D]"), "datetime64"),
        (np.ma.array([1, 2], mask=[0, 1]), "masked"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(values, said):
    with pytest.raises(ParameterError, match=said):
        share(values)
    assert registry.entries() == []


@pytest.mark.parametrize("make", [share_output, lambda n, **options: share(np.zeros(n), **options)])
def test_what_has_no_room_is_refused_before_it_is_made(make):
    with pytest.raises(MemoryLimitError, match=r"sharing 1000000 float64 needs 8 MiB"):
        make(1_000_000, memory_limit="1M")
    assert registry.entries() == []


def test_an_impossible_shape_is_refused():
    with pytest.raises(ParameterError, match="negative"):
        share_output((3, -1))


def test_the_owner_stays_with_its_process():
    with share(np.zeros(3)) as shared:
        assert repr(shared) == f"<ArrayOwner 3 float64 {shared._owned.segment.store.kind}>"
        for dumps in (pickle.dumps, cloudpickle.dumps):
            with pytest.raises(TypeError, match=r"pass its \.array"):
                dumps(shared)


@pytest.mark.parametrize("store", STORES)
def test_a_killed_owner_leaves_nothing(store):
    script = f"""
import numpy as np, sharedmask
shared = sharedmask.share(np.ones(1000), store={store!r}, label="betas")
output = sharedmask.share_output(1000, store={store!r})
print("ready", flush=True)
import time; time.sleep(600)
"""
    with running(script) as child:
        assert {entry.label for entry in registry.entries()} == {"betas", "1000 float64"}
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    registry.reap()
    assert registry.entries() == []
