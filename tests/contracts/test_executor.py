"""The contract of executors, held by ours, those of the standard library, and Dask's."""

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context

import pytest
from contracts.executor import ExecutorContract


@contextmanager
def dask():
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address="localhost:0", protocol="inproc"
    )
    with cluster, distributed.Client(cluster) as client:
        yield client.get_executor()


EXECUTORS = {
    "threads of ours": nullcontext,
    "ThreadPoolExecutor": lambda: ThreadPoolExecutor(2),
    "ProcessPoolExecutor": lambda: ProcessPoolExecutor(2, mp_context=get_context("spawn")),
    "dask": dask,
}


class TestExecutors(ExecutorContract):
    @pytest.fixture(
        params=[
            pytest.param(one, marks=[pytest.mark.long] * (one == "ProcessPoolExecutor")) for one in EXECUTORS
        ]
    )
    def how(self, request):
        with EXECUTORS[request.param]() as executor:
            yield {"executor": executor}


class TestProcessesOfOurs(ExecutorContract):
    @pytest.fixture
    def how(self):
        return {"n_jobs": 2}
