"""Grids: where an image is, which grids are one, and how others are refused."""

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oblique import OBLIQUE, SHAPE, image_of, orientations, reoriented

from sharedmask import FrameDataset, SharedImage, errors, extract
from sharedmask.regions.regions import Regions
from sharedmask.spaces.grid import Grid


@pytest.fixture
def grid():
    return Grid(SHAPE, OBLIQUE)


@pytest.fixture
def mask():
    return np.random.default_rng(0).random(SHAPE) < 0.4


def test_grid_matches_but_for_rounding(grid):
    shifted = OBLIQUE.copy()
    shifted[0, 3] += 0.03
    assert grid.matches(Grid(SHAPE, OBLIQUE + 1e-9))
    assert not grid.matches(Grid(SHAPE, shifted))
    assert not grid.matches(Grid((4, 5, 2), OBLIQUE))
    assert grid.n_voxels == 60
    assert not grid.affine.flags.writeable


def test_grid_does_not_follow_the_caller_s_array():
    affine = np.eye(4)
    grid = Grid((1, 1, 1), affine)
    affine[0, 0] = 7
    assert grid.affine[0, 0] == 1
    assert affine.flags.writeable


def test_grid_says_where_it_is():
    text = str(Grid((50, 59, 50), nib.affines.from_matvec(np.diag([-3, 3, 4.5]), [72, -106.25, -64])))
    assert text == (
        "50 x 59 x 50 voxels of 3 x 3 x 4.5 mm, axes LAS, affine [-3 0 0 72] [0 3 0 -106.25] [0 0 4.5 -64]"
    )
    assert "axes ???" in str(Grid((1, 1, 1), np.diag([0, 0, 0, 1])))


@pytest.mark.parametrize(("shape", "affine"), [((2, 3), np.eye(4)), ((2, 3, 4), np.eye(3))])
def test_grid_refuses_other_sizes(shape, affine):
    with pytest.raises(errors.ParameterError, match="is 3 sizes and"):
        Grid(shape, affine)


HALF_VOXEL = nib.affines.from_matvec(np.eye(3), [0.5, 0, 0])


TURNED = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2), [0, 0, 0])


FLIPPED_AND_SHIFTED = nib.affines.from_matvec(np.diag([-1.0, 1, 1]), [SHAPE[0] - 0.5, 0, 0])


FLIPPED_AND_ZOOMED = nib.affines.from_matvec(np.diag([-1.0, 1.01, 1]), [SHAPE[0] - 1.0, 0, 0])


HAIR = nib.affines.from_matvec(np.eye(3), [0.0101, 0, 0])


FLIPPED_IN_PLACE = nib.affines.from_matvec(np.diag([-1.0, 1, 1]), [0, 0, 0])


@pytest.mark.parametrize(
    "move",
    [
        HALF_VOXEL,
        HAIR,
        TURNED,
        FLIPPED_AND_SHIFTED,
        FLIPPED_AND_ZOOMED,
        FLIPPED_IN_PLACE,
        np.diag([2, 1, 1, 1]),
    ],
    ids=[
        "half voxel",
        "hair",
        "turned",
        "flipped, shifted",
        "flipped, zoomed",
        "flipped elsewhere",
        "zoomed",
    ],
)
def test_other_grids_are_refused_with_both_printed(grid, mask, move):
    own = Grid(SHAPE, OBLIQUE @ move)
    made = Regions.from_any({"insula": mask}, own)
    attempts = [
        lambda: made.on(grid),
        lambda: Regions.from_any(made, grid),
        lambda: Regions.from_any({"insula": image_of(mask.astype(np.uint8), own.affine)}, grid),
        lambda: Regions.from_any(mask, grid).on(own),
    ]
    for attempt in attempts:
        with pytest.raises(errors.GridMismatchError) as caught:
            attempt()
        assert str(own) in str(caught.value)
        assert str(grid) in str(caught.value)
        assert 'resampling_target="data"' in str(caught.value)
    with pytest.raises(errors.GridMismatchError, match="insula"):
        made.on(grid)


def test_flipped_with_another_shape_is_refused(mask):
    img = reoriented(image_of(mask.astype(np.uint8)), np.array([[0, -1], [1, 1], [2, 1]]))
    with pytest.raises(
        errors.GridMismatchError, match=r"region 'mask_000' .and 1 more. lies on another grid"
    ):
        Regions.from_any([img, img]).on(Grid((4, 5, 2), OBLIQUE))


def test_equal_singular_affines_are_one_grid(mask):
    nowhere = Grid(SHAPE, np.zeros((4, 4)))
    made = Regions.from_any(mask, nowhere)
    with pytest.raises(errors.GridMismatchError, match="lies on another grid"):
        made.on(Grid(SHAPE, OBLIQUE))
    with pytest.raises(errors.GridMismatchError, match="lies on another grid"):
        Regions.from_any(mask, Grid(SHAPE, OBLIQUE)).on(nowhere)
    assert made.on(Grid(SHAPE, np.zeros((4, 4)))) is made


# --- one grid but for rounding, by every entry ----------------------------------------------------

BOX = (10, 12, 8)
MNI = nib.affines.from_matvec(np.diag([2.0, 2, 2]), [-96.5, -132.5, -78.5])
TURN = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1), [0, 0, 0])


def off(where, by, affine=MNI):
    changed = affine.copy()
    changed[where] += by
    return changed


def through_a_qform(affine):
    header = nib.Nifti1Header()
    header.set_data_shape(BOX)
    header.set_qform(affine, code=1)
    return header.get_qform()


ROUNDED = {
    "equal": (MNI, MNI),
    "turned by 1e-7": (MNI, off((0, 1), 1e-7)),
    "turned by 1e-4": (MNI, off((0, 1), 1e-4)),
    "larger by 1e-4": (MNI, off((0, 0), 1e-4)),
    "moved by 1e-2 mm": (MNI, off((0, 3), 1e-2)),
    "origin near 0": (off((2, 3), 78.5), off((2, 3), 78.5 + 1e-6)),
    "rounded": (TURN @ MNI, (TURN @ MNI).astype("f4").astype("f8")),
    "through a qform": (TURN @ MNI, through_a_qform(TURN @ MNI)),
}
ELSEWHERE = {"moved": off((0, 3), 0.03), "larger": off((1, 1), 2e-3), "turned": off((0, 1), 3e-3)}


@pytest.fixture
def files(tmp_path):
    """Writes a run and labels, each with its affine; gives both paths."""

    def write(bold_affine, mask_affine):
        data = np.random.default_rng(0).normal(1000, 10, (*BOX, 5)).astype("f4")
        labels = (np.random.default_rng(1).random(BOX) < 0.4).astype("u1")
        nib.Nifti1Image(data, bold_affine).to_filename(tmp_path / "bold.nii")
        nib.Nifti1Image(labels, mask_affine).to_filename(tmp_path / "mask.nii")
        return tmp_path / "bold.nii", tmp_path / "mask.nii"

    return write


def of_mask_img(bold, mask):
    with SharedImage(bold, mask_img=mask) as image:
        return image.mask(np.ones(BOX) * (np.asanyarray(nib.load(mask).dataobj) > 0)).mean(1)


def of_a_shared_image(bold, mask):
    with SharedImage(bold) as image:
        return image.mask(mask).mean(1)


def of_frames(bold, mask):
    with FrameDataset(bold, mask_img=mask) as frames:
        return frames[:][0][frames.brainmask].mean(0)


def of_the_command_line(bold, mask):
    out = bold.with_name("out.tsv")
    command = [sys.executable, "-m", "sharedmask", "extract", bold, "--mask", mask, "-o", out]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise errors.GridMismatchError(done.stderr)
    return np.loadtxt(out, skiprows=1)


ENTRIES = {
    "extract": lambda bold, mask: extract(bold, mask).mean(1),
    "atlas": lambda bold, mask: extract(bold, mask, strategy="mean")[:, 0],
    "data": lambda bold, mask: extract(bold, mask, resampling_target="data").mean(1),
    "SharedImage": of_a_shared_image,
    "mask_img": of_mask_img,
    "frames": of_frames,
    "command line": of_the_command_line,
}


@pytest.mark.some(16)
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("case", ROUNDED)
def test_rounding_is_no_other_grid(files, entry, case):
    if entry == "command line" and case != "turned by 1e-7":
        pytest.skip("one of them is enough")
    bold, mask = files(*ROUNDED[case])
    expected = np.asanyarray(nib.load(bold).dataobj)[np.asanyarray(nib.load(mask).dataobj) > 0].mean(0)
    np.testing.assert_allclose(ENTRIES[entry](bold, mask), expected, rtol=1e-5)


@pytest.mark.some(6)
@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry != "data"])
@pytest.mark.parametrize("case", ELSEWHERE)
def test_beyond_it_both_files_are_named_and_what_to_do(files, entry, case):
    bold, mask = files(MNI, ELSEWHERE[case])
    with pytest.raises(errors.GridMismatchError) as caught:
        ENTRIES[entry](bold, mask)
    said = str(caught.value)
    assert str(bold) in said and str(mask) in said
    flags = {"command line": "--resampling-target data resamples masks"}
    own = {"mask_img": "resample the mask first", "frames": "resample the mask first"}
    assert (flags | own).get(entry, 'resampling_target="data" resamples masks') in said
    assert ("resampling" in said) == (entry not in own)


@pytest.mark.parametrize("move", [0.005, 0.02])
def test_volumes_of_a_series_share_a_grid(tmp_path, move):
    paths = [tmp_path / f"{number}.nii" for number in range(2)]
    for number, path in enumerate(paths):
        nib.Nifti1Image(np.ones(BOX, "f4"), off((0, 3), 2 * move * number)).to_filename(path)
    if move < 0.01:
        assert extract(paths, np.ones(BOX, bool)).shape == (2, np.prod(BOX))
        return
    with pytest.raises(errors.ImageError) as caught:
        extract(paths, np.ones(BOX, bool))
    assert all(str(path) in str(caught.value) for path in paths)


@given(orientations, st.floats(-0.02, 0.02))
def test_flipped_and_permuted_have_the_same_tolerance(ornt, by):
    own = Grid(SHAPE, OBLIQUE)
    image = reoriented(image_of(np.zeros(SHAPE, "u1")), ornt)
    other = Grid(image.shape, image.affine @ nib.affines.from_matvec(np.eye(3), [by, 0, 0]))
    if abs(abs(by) - 0.01) > 1e-6:
        assert (other.numbers_of(own, np.arange(2)) is not None) == (abs(by) < 0.01)
