"""A run in a file."""

import pytest
from images import bold, save


@pytest.fixture
def run(tmp_path):
    return save(tmp_path / "run.nii", bold(dtype="float32"))
