"""Converting: whole or not at all, never over a file that is mapped."""

import os
import signal

import nibabel as nib
import numpy as np
import pytest
from children import running
from frame_cases import left_in
from images import AFFINE, bold, niimg, same_bits, save, truth

from sharedmask import FrameDataset, SharedImage
from sharedmask.errors import ParameterError
from sharedmask.frames.convert import convert
from sharedmask.system import files


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair, nib.Spm2AnalyzeImage])
def test_images_in_two_files_are_converted(tmp_path, kind):
    nib.save(kind(bold(), AFFINE), tmp_path / "run.img")
    convert(tmp_path / "run.img", tmp_path / "run.h5")
    convert(tmp_path / "run.h5", tmp_path / "run.nii")
    same_bits(truth(tmp_path / "run.nii"), bold())
    np.testing.assert_allclose(nib.load(tmp_path / "run.nii").affine, nib.load(tmp_path / "run.img").affine)


def test_a_mapped_file_is_not_replaced(tmp_path):
    path = save(tmp_path / "run.nii", bold())
    with FrameDataset(path) as ds:
        h5 = ds.to_filename(tmp_path / "run.h5")
        with pytest.raises(ParameterError, match=r"run\.nii is mapped"):
            ds.to_nifti(path)
    before = h5.read_bytes()
    with FrameDataset(h5) as mapped:
        os.symlink(h5, tmp_path / "link.h5")
        for target in (h5, tmp_path / "link.h5"):
            with pytest.raises(ParameterError, match="is mapped"):
                mapped.to_filename(target)
            with pytest.raises(ParameterError, match="is mapped"):
                convert(path, target)
    assert h5.read_bytes() == before


def test_the_file_of_a_shared_image_is_not_replaced(tmp_path):
    path, other = save(tmp_path / "run.nii", bold()), save(tmp_path / "other.nii", bold(seed=1))
    with SharedImage(path, store="file") as image:
        image.load()
        with pytest.raises(ParameterError, match="is mapped"):
            convert(other, path)
        same_bits(np.asarray(image.array), truth(path))


@pytest.mark.parametrize("name", ["run.nii", "run.nii.gz", "run.h5"])
def test_no_file_is_written_over_itself(tmp_path, name):
    save(tmp_path / "made.nii", bold())
    convert(tmp_path / "made.nii", tmp_path / name)
    before = (tmp_path / name).read_bytes()
    os.symlink(tmp_path / name, tmp_path / f"link{name}")
    for target in (name, f"link{name}"):
        with pytest.raises(ParameterError, match="would be written over itself"):
            convert(tmp_path / name, tmp_path / target)
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("name", ["run.img", "run.mgz", "run.txt"])
def test_another_ending_is_refused(tmp_path, name):
    with (
        FrameDataset(niimg(bold())) as ds,
        pytest.raises(ParameterError, match=r"ends in \.nii or \.nii\.gz"),
    ):
        ds.to_nifti(tmp_path / name)


def until_the_disk_is_gone(self, **options):
    for index in range(len(self)):
        if index == 5:
            raise OSError("the disk is gone")
        yield self[index][0]


@pytest.mark.parametrize("nameless", [True, False])
@pytest.mark.parametrize("name", ["run.h5", "run.nii", "run.nii.gz"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, name, nameless):
    monkeypatch.setattr(FrameDataset, "frames", until_the_disk_is_gone)
    path = tmp_path / name
    path.write_text("old")
    with FrameDataset(niimg(bold()), store="disk") as ds:
        if not nameless:
            monkeypatch.setattr(files, "nameless", only_scratch)
        with pytest.raises(OSError, match="the disk is gone"):
            ds.to_filename(path) if name == "run.h5" else ds.to_nifti(path)
    assert path.read_text() == "old"
    assert left_in(tmp_path) == [name]


def only_scratch(folder, mode=0o600, make=files.nameless):
    """As where files must have a name; the registry and scratch are elsewhere."""
    return make(folder) if mode == 0o600 else None


SAVING = """
    import sys, time
    import nibabel as nib, numpy as np
    from sharedmask import FrameDataset
    from sharedmask.system import files

    if sys.argv[2] == "named":
        nameless = files.nameless
        files.nameless = lambda folder, mode=0o600: nameless(folder) if mode == 0o600 else None
    def frames(self, **options):
        for index in range(len(self)):
            if index == 5:
                print("ready", flush=True)
                time.sleep(60)
            yield self[index][0]
    FrameDataset.frames = frames
    with FrameDataset(nib.Nifti1Image(np.ones((7, 6, 5, 12), "f4"), np.eye(4)), store="disk") as ds:
        ds.to_filename(sys.argv[1])
"""


@pytest.mark.some(1)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("how", ["nameless", "named"])
def test_killed_while_saving_the_old_file_is_intact(tmp_path, how, number):
    path = tmp_path / "run.h5"
    path.write_text("old")
    with running(SAVING, path, how) as child:
        os.kill(child.pid, number)
        child.wait()
    assert path.read_text() == "old"
    left = [str(tmp_path / name) for name in left_in(tmp_path) if name != "run.h5"]
    assert len(left) == (how == "named" and number != signal.SIGINT)
    assert files.sweep(tmp_path) == left
    assert left_in(tmp_path) == ["run.h5"]
