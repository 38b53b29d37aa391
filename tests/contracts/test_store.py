"""The contract of stores, held by each of them."""

import bare
import pytest
from contracts.store import StoreContract
from images import bold, save

from sharedmask.storage import rows
from sharedmask.system import platform


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "run.nii", bold())


class TestStores(StoreContract):
    shared = platform.can_share()

    @pytest.fixture(params=bare.cases(sorted({*rows.STORES} - {rows.PRIVATE}), "shm", "memfd"))
    def store(self, request):
        return request.param


class TestPrivateMemory(StoreContract):
    shared = False

    @pytest.fixture(params=["auto", rows.PRIVATE])
    def store(self, request, monkeypatch):
        """Asked for, or what "auto" is where nothing may be shared."""
        if request.param == "auto":
            monkeypatch.setenv("SHAREDMASK_SHARED_MEMORY", "0")
        return request.param
