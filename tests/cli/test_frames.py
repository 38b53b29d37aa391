"""``sharedmask frames``."""

import nibabel as nib
import pytest
from command import sharedmask
from frame_cases import left_in
from images import bold, same_bits, save, truth


def command(*args):
    return sharedmask("frames", "convert", *args)


def test_the_command_line_converts_there_and_back(tmp_path):
    path = save(tmp_path / "run.nii.gz", bold(dtype="float32"))
    assert command(path, tmp_path / "run.h5", "--gzip", 1).stderr == ""
    assert command(tmp_path / "run.h5", tmp_path / "back.nii").stderr == ""
    same_bits(truth(tmp_path / "back.nii"), truth(path))
    assert nib.load(tmp_path / "back.nii").header["pixdim"][4] == 2.0


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("source", "target", "code", "said"),
    [
        ("gone.nii", "out.h5", 66, "gone.nii does not exist"),
        ("run.nii", "out.txt", 64, "ends in .nii or .nii.gz"),
        ("run.nii", "no/out.h5", 73, "no folder"),
        ("run.nii", "out.nii --gzip 1", 64, "compression is for .h5 files"),
    ],
)
def test_the_command_line_says_what_is_wrong(tmp_path, source, target, code, said):
    save(tmp_path / "run.nii", bold())
    name, *options = target.split()
    done = command(tmp_path / source, tmp_path / name, *options)
    assert done.returncode == code
    assert said in done.stderr
    assert left_in(tmp_path) == ["run.nii"]
