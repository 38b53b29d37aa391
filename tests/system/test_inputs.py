"""Files that others wrote: what is no file, text that is too long, JSON of any depth."""

import os

import nibabel as nib
import numpy as np
import pytest

from sharedmask import FrameDataset
from sharedmask.compute.confounds import confounds_table
from sharedmask.errors import MaskError, MissingFileError, ParameterError
from sharedmask.regions.lut import read_lut
from sharedmask.regions.spheres import Seeds
from sharedmask.sources.opening import open_source
from sharedmask.sources.sidecar import read_json as read_sidecar
from sharedmask.system import inputs, settings


@pytest.mark.parametrize("path", ["pipe", "/dev/zero"])
@pytest.mark.parametrize(
    ("read", "error"),
    [
        (inputs.read_text, OSError),
        (inputs.read_json, OSError),
        (read_lut, MaskError),
        (read_sidecar, ValueError),
        (lambda path: confounds_table(None, path), ParameterError),
        (lambda path: settings.using(config=path).__enter__(), ParameterError),
    ],
    ids=["text", "json", "lut", "sidecar", "confounds", "settings"],
)
def test_what_is_no_file_is_refused_without_waiting(read, error, path, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(error, match="a pipe, a socket or a device"):
        read(tmp_path / path)


def test_text_that_is_too_long_is_not_read(tmp_path):
    with open(tmp_path / "long.tsv", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match=r"more than 64 MiB of text: .*long\.tsv"):
        inputs.read_text(tmp_path / "long.tsv")


@pytest.mark.parametrize(
    ("text", "said"),
    [("[" * 100_000, "nested too deep"), ("[1]", "object was expected, not list"), ("{", "Expecting")],
    ids=["deep", "list", "half"],
)
def test_json_that_is_no_object_says_what_is_wrong(text, said, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        inputs.read_json(tmp_path / "a.json")


def test_a_table_with_one_row_of_a_million_cells_is_none(tmp_path):
    (tmp_path / "a.tsv").write_text("\t".join("x" * 100_000) + "\n" + "1\n" * 10_000)
    with pytest.raises(MaskError, match="10001 rows, and one of them has 100000 cells"):
        read_lut(tmp_path / "a.tsv")


def test_what_a_disk_says_of_a_file_names_it(tmp_path):
    path = tmp_path / "run.nii.gz"
    path.write_bytes(b"x")
    with inputs.opened_regular(path) as file:
        folder = os.open(tmp_path, os.O_RDONLY)  # which cannot be read
        os.dup2(folder, file.fileno())
        os.close(folder)
        for read in (file.read, file.readall, lambda: file.readinto(bytearray(3))):
            with pytest.raises(IsADirectoryError, match=r"run\.nii\.gz"):
                read()


POINTER = "/annex/objects/MD5E-s1024--0123456789abcdef\n"
MISSING = {
    "table": lambda path: confounds_table(None, path),
    "look-up table": read_lut,
    "sidecar": read_sidecar,
    "image": open_source,
    "frames": FrameDataset,
    "spheres": lambda path: Seeds.of([str(path)]),
    "JSON": inputs.read_json,
}


@pytest.mark.parametrize(
    ("read", "name"),
    [
        *((read, "file.tsv") for read in MISSING.values()),
        *((open_source, f"run.{ending}") for ending in ("nii", "nii.gz", "func.gii", "mgz", "dtseries.nii")),
        (FrameDataset, "run.h5"),
    ],
)
def test_a_pointer_of_git_annex_is_content_that_is_not_there(read, name, tmp_path):
    path = tmp_path / name
    path.write_text(POINTER)
    with pytest.raises(MissingFileError, match=rf"{name} is a pointer .*`datalad get \S+{name}`"):
        read(path)


@pytest.mark.parametrize("part", ["run.hdr", "run.img"])
@pytest.mark.parametrize("given", ["run.hdr", "run.img", "image"])
def test_either_file_of_a_pair_may_be_a_pointer(part, given, tmp_path):
    nib.save(nib.Nifti1Pair(np.ones((2, 2, 2, 3), "f4"), np.eye(4)), tmp_path / "run.img")
    image = nib.load(tmp_path / "run.img") if given == "image" else tmp_path / given
    (tmp_path / part).write_text(POINTER)
    if (part, given) == ("run.hdr", "image"):
        assert open_source(image).shape == (2, 2, 2, 3)
    else:
        with pytest.raises(MissingFileError, match=rf"{part} is a pointer .*`datalad get \S+{part}`$"):
            open_source(image)
