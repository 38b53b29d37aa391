"""``sharedmask ls``."""

import pytest
from command import sharedmask
from images import bold, save
from serving import serving

from sharedmask import SharedImage

STORES = ["shm", "memfd"]


@pytest.mark.some(1)
@pytest.mark.parametrize("store", STORES)
def test_ls_shows_what_is_held_and_by_how_many(store, run):
    with serving(run, "--store", store) as child, SharedImage.connect(run):
        head, line = sharedmask("ls").stdout.splitlines()
        assert head.split() == ["name", "shape", "size", "store", "owner", "age", "clients"]
        name, shape, amount, unit, where, pid, _, _, clients = line.split()
        assert (name, shape, where, pid, clients) == ("run.nii.gz", "7x6x5x12", store, str(child.pid), "1")
        assert (amount, unit) == ("9", "KiB")


def test_ls_counts_clients_of_namesakes_apart(tmp_path):
    paths = [tmp_path / folder / "run.nii.gz" for folder in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        save(path, bold())
    with serving(*paths), SharedImage.connect(paths[0]):
        lines = sharedmask("ls").stdout.splitlines()[1:]
        assert [line.split()[-1] for line in lines] == ["1", "0"]


def test_ls_has_a_line_for_each_whatever_its_name(tmp_path):
    path = save(tmp_path / "a\n\x1b[2Kb.nii.gz", bold())
    with SharedImage(path) as image:
        image.load()
        _, line = sharedmask("ls").stdout.splitlines()
    assert line.startswith(r"a\x0a\x1b[2Kb.nii.gz  ")
