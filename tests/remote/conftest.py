import pytest
from servers import serving

from sharedmask.remote import objects, retries


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pauses that tests can wait for, and nothing known of other servers."""
    monkeypatch.setattr(retries, "PAUSE", 0.001)
    objects._heads.clear()
    objects._folders.clear()


@pytest.fixture
def server():
    with serving() as served:
        yield served
