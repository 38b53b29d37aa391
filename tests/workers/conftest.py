"""A worker that is there before the test."""

import os

import pytest
from jobs import in_worker


@pytest.fixture
def warm():
    """It has been at work in other surroundings."""
    in_worker(os.getpid)
