"""Frames in a row: indices, selections, sums, folds."""

import numpy as np
import pytest
from frame_cases import N, fields, shift
from hypothesis import given
from hypothesis import strategies as st
from images import bold, same_bits, save, truth

from sharedmask import FrameDataset
from sharedmask.errors import (
    FrameIndexError,
    ParameterError,
)

INDICES = st.one_of(
    st.integers(-N, N - 1),
    st.slices(N),
    st.lists(st.integers(-N, N - 1), max_size=2 * N),
    st.lists(st.booleans(), min_size=N, max_size=N).map(np.array),
    st.tuples(st.integers(0, N), st.integers(0, N), st.sampled_from([1, 2, -1]))
    .map(lambda ends: range(*ends))
    .filter(lambda one: max(one, default=0) < N),
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = save(tmp_path_factory.mktemp("frames") / "run.nii", bold(dtype="float32"))
    with FrameDataset(path, affines=np.arange(N * 16.0).reshape(N, 4, 4), per_frame=fields()) as ds:
        yield ds


@given(index=INDICES)
def test_indices_mean_what_they_mean_to_numpy(dataset, index):
    at = np.array(index, int) if isinstance(index, list | range) else index
    data, affine, when, gradient = dataset[index]
    same_bits(np.asarray(data), bold(dtype="float32")[..., at])
    np.testing.assert_array_equal(affine, np.arange(N * 16.0).reshape(N, 4, 4)[at])
    np.testing.assert_array_equal(when, fields()["time"][at])
    np.testing.assert_array_equal(gradient, fields()["gradients"][at])


@pytest.mark.parametrize(
    "index",
    [
        N,
        -N - 1,
        "a",
        None,
        [0, N],
        np.ones(N + 1, bool),
        np.ones((2, 2), int),
        1.5,
        True,
        np.False_,
        range(N + 1),
    ],
)
def test_what_is_no_frame_is_an_index_error(dataset, index):
    with pytest.raises(FrameIndexError, match="12 frames") as raised:
        _ = dataset[index]
    assert isinstance(raised.value, IndexError)


def test_numbers_of_frames_survive_filtering(run):
    kept = np.ones(N, bool)
    kept[[0, 7]] = False
    with FrameDataset(run, per_frame=fields()) as ds:
        diffusion = ds.select(kept)
        again = diffusion.select(slice(5, None))
        assert [again.original_index(i) for i in range(len(again))] == [6, 8, 9, 10, 11]
        np.testing.assert_array_equal(again.per_frame["time"], [12, 16, 18, 20, 22])
        same_bits(again.original(1), truth(run)[..., 8])
        same_bits(again[-1][0], truth(run)[..., 11])
        again.close()
        assert not ds.closed


@pytest.mark.parametrize("index", [[], [2, 1], [3, 3], slice(5, 5), slice(None, None, -1), 3])
def test_a_selection_keeps_the_order(run, index):
    with FrameDataset(run) as ds, pytest.raises(ParameterError):
        ds.select(index)


def test_a_transform_changes_the_sums(run, tmp_path):
    with FrameDataset(save(tmp_path / "run.nii.gz", bold())) as ds:
        training = ds.select(np.arange(N) != 0)
        before = training.sum()
        ds.set_transform(1, shift(10.0))
        assert not np.array_equal(training.sum(), before)
        same_bits(training.sum(), training[:][0].astype(np.float64).sum(axis=3))


def test_folds_split_the_run(run):
    with FrameDataset(run) as ds:
        tested = []
        for indices, test, training in ds.k_fold(5):
            tested += indices.tolist()
            same_bits(test[:][0], truth(run)[..., indices])
            same_bits(training.materialise(), np.delete(truth(run), indices, axis=3))
            same_bits(np.asarray(training), np.delete(truth(run), indices, axis=3))
        assert tested == list(range(N))
        for k in (1, N + 1, 2.5):
            with pytest.raises(ParameterError, match="12 frames cannot be split"):
                next(ds.k_fold(k))


def test_a_reduction_sees_frames_and_fields(run):
    with FrameDataset(run, per_frame={"time": np.arange(N)}) as ds:
        total = ds.reduce(lambda state, frame, affine, time: state + time * float(frame[0, 0, 0]), 0.0)
    np.testing.assert_allclose(total, (truth(run)[0, 0, 0].astype(float) * np.arange(N)).sum())


def test_progress_is_told(run):
    told = []
    with FrameDataset(run) as ds:
        for _ in ds.frames(progress=lambda done, total: told.append((done, total))):
            pass
        assert sum(1 for _ in ds.frames(progress=True)) == N
    assert told == [(i + 1, N) for i in range(N)]


def test_data_sets_are_equal_by_their_values(run, tmp_path):
    packed = save(tmp_path / "run.nii.gz", truth(run))
    other = save(tmp_path / "other.nii", truth(run) + np.float32(1))
    with FrameDataset(run) as one, FrameDataset(packed) as same, FrameDataset(other) as different:
        assert one == same
        assert one != different
        assert one != "run.nii"
        assert one.select([1]) != one.select([1, 2])
        same.set_transform(1, shift())
        assert one != same
