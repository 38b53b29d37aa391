"""Gradients of diffusion and timing of PET: read, checked, carried along."""

import json

import numpy as np
import pytest
from images import SHAPE, bold, niimg, same_bits, save

from sharedmask import FrameDataset
from sharedmask.errors import ParameterError
from sharedmask.frames import acquisition

N = 12
LOW = (0, 7)


def gradients():
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(N, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    table = np.c_[directions, np.repeat([1000.0, 2000.0], N // 2)]
    table[list(LOW)] = 0
    return table


@pytest.fixture
def run(tmp_path):
    return save(tmp_path / "dwi.nii.gz", bold())


@pytest.fixture(params=["array", "transposed", "table", "fsl"])
def given(request, tmp_path):
    table = gradients()
    np.savetxt(tmp_path / "g.txt", table)
    np.savetxt(tmp_path / "dwi.bvec", table[:, :3].T)
    np.savetxt(tmp_path / "dwi.bval", table[:, 3:].T)
    return {
        "array": {"gradients": table},
        "transposed": {"gradients": table.T},
        "table": {"gradients": tmp_path / "g.txt"},
        "fsl": {"bvec_file": tmp_path / "dwi.bvec", "bval_file": tmp_path / "dwi.bval"},
    }[request.param]


def test_weighted_volumes_have_their_gradients(run, given):
    table, kept = gradients(), [i for i in range(N) if i not in LOW]
    with FrameDataset.diffusion(run, **given) as ds:
        assert len(ds) == N - 2
        frame, _, gradient = ds[6]
        same_bits(np.asarray(frame), bold()[..., kept[6]])
        np.testing.assert_allclose(gradient, table[kept[6]])
        assert ds.original_index(6) == kept[6]
        np.testing.assert_array_equal(ds.overall["bzero"], np.median(bold()[..., LOW], axis=3))
        (low, first), (high, second) = ds.shells()
        assert (low, high) == (1000, 2000)
        assert [*first, *second] == list(range(N - 2))
    assert ds.closed


def test_one_volume_without_weighting_is_the_reference_and_a_given_one_wins(run):
    table = gradients()
    table[7] = table[6]
    with FrameDataset.diffusion(run, table) as ds:
        same_bits(np.asarray(ds.overall["bzero"]), bold()[..., 0])
    with FrameDataset.diffusion(run, table, bzero=np.ones(SHAPE)) as ds:
        assert (ds.overall["bzero"] == 1).all()


def test_directions_have_unit_length_and_their_length_is_part_of_b():
    table = gradients()
    table[3, :3] *= 2
    table[4, :3] *= 1.005
    table[5, :3] = 0
    found = acquisition.checked_gradients(table, N)
    assert found[3, 3] == pytest.approx(2000)
    assert np.linalg.norm(found[3, :3]) == pytest.approx(1)
    np.testing.assert_array_equal(found[4], table[4])
    assert not found[5].any()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda table: table[:-1], r"\(11, 4\) where \(12, 4\)"),
        (lambda table: np.where(np.arange(4) == 1, np.nan, table), "row 0 is .* not finite"),
        (lambda table: np.where(np.arange(4) == 3, -1, table), "negative"),
        (lambda table: np.where(np.arange(4) == 3, 10, table), "0 orientations"),
    ],
)
def test_gradients_that_are_none_are_refused(run, change, message):
    with pytest.raises(ParameterError, match=message):
        FrameDataset.diffusion(run, change(gradients()))


@pytest.mark.parametrize(
    "files",
    [{}, {"bvec_file": "x"}, {"gradients": "g.txt", "bval_file": "x"}, {"gradients": "none.txt"}],
)
def test_files_of_gradients_that_are_none_are_refused(run, files):
    with pytest.raises(ParameterError):
        FrameDataset.diffusion(run, **files)


@pytest.mark.parametrize("told", [{"FrameDuration": [2.0] * N}, {}])
def test_frames_of_pet_have_the_timing_of_the_sidecar(tmp_path, told):
    path = save(tmp_path / "sub-1_pet.nii.gz", bold())
    starts = [2.0 * i for i in range(N)]
    (tmp_path / "sub-1_pet.json").write_text(json.dumps({"FrameTimesStart": starts, **told}))
    with FrameDataset.pet(path) as ds:
        assert ds[3][2] == 7.0
        assert ds.overall["total_duration"] == 24.0
    with FrameDataset.pet(path, temporal_file=tmp_path / "sub-1_pet.json", total_duration=30) as ds:
        assert ds.overall["total_duration"] == 30.0


@pytest.mark.parametrize(
    "timing",
    [
        {},
        {"midframe": np.arange(N)},
        {"midframe": np.arange(N), "total_duration": 5},
        {"midframe": np.zeros(N), "total_duration": 5},
        {"midframe": np.full(N, np.nan), "total_duration": 5},
        {"midframe": np.arange(3), "total_duration": 5},
    ],
)
def test_timing_that_is_none_is_refused(run, timing):
    with pytest.raises(ParameterError):
        FrameDataset.pet(run, **timing)


@pytest.mark.parametrize("text", ['{"FrameTimesStart": [0, 1]}x', '{"FrameTimesStart": ["a"]}',
                                  '{"FrameTimesStart": [0, 1], "FrameDuration": [1]}'])  # fmt: skip
def test_a_sidecar_that_tells_no_timing_is_named(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises((ParameterError, ValueError), match=r"t\.json"):
        acquisition.read_timing(tmp_path / "x.nii", tmp_path / "t.json")


def test_an_image_of_all_frames_as_they_are_now(run):
    shift = np.eye(4)
    shift[0, 3] = 1.3
    with FrameDataset(run) as ds:
        ds.set_transform(2, shift, order=1)
        image = ds.to_nifti()
        same_bits(np.asarray(image.dataobj), ds.materialise())
        smooth = ds[2][0].copy()
        ds.set_transform(2, shift, order=3)
        assert not np.array_equal(ds[2][0], smooth)
        np.testing.assert_array_equal(image.affine, ds.affine)
    assert image.header.get_zooms()[3] == niimg(bold()).header.get_zooms()[3]
