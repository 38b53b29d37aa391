"""A data set as fMRIPrep writes it, and an atlas."""

import pytest
from datasets import atlas, preprocessed

from sharedmask.reports import figures
from sharedmask.study.atlases import find_atlas


@pytest.fixture
def dataset(tmp_path):
    return preprocessed(tmp_path / "fmriprep")


@pytest.fixture
def toy(tmp_path):
    return find_atlas(atlas(tmp_path / "atlases"))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def blank_pictures(monkeypatch):
    """Pages are written with blanks for pictures: drawing takes most of the time of a small study."""
    blank(monkeypatch)


def blank(patch):
    for name in ("brain", "outlines", "carpet", "coverage", "timeline", "distribution", "coverage_of_runs"):
        patch.setattr(figures, name, lambda *_: "data:image/png;base64,")
    for name in ("matrix", "thumbnail"):
        patch.setattr(figures, name, lambda *_: b"\x89PNG")
