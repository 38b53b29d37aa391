"""Functions in workers see the variables of the user's modules as their caller does."""

import importlib
import os
import pickle
import sys
import textwrap
import threading
from unittest import mock

import numpy as np
import pytest
from jobs import in_worker

from sharedmask import batch_process
from sharedmask.workers import pool

MODULE = """
    import enum, functools, threading
    from {name}_inner import ALSO, later
    import {name}_inner as inner

    FACTOR, TABLE, WEIGHTS, OPTIONS = 1, [], None, {{}}
    NOTHING, LOCK = object(), threading.Lock()

    class Config:
        factor = 1
        mine = {{"a": 1}}
        @staticmethod
        def read(): return FACTOR
        @classmethod
        def read_own(cls): return cls.factor
        @property
        def own(self): return self.factor
        def __call__(self): return self.factor, FACTOR

    class Kind(enum.Enum):
        ONE = 1

    CONFIG = Config()

    def wrapped(function):
        @functools.wraps(function)
        def call(*given): return function(*given)
        return call

    def factor(): return FACTOR
    def table(): return list(TABLE), sorted(OPTIONS.items())
    def weights(): return WEIGHTS if WEIGHTS is None else WEIGHTS.tolist()
    def of_class(): return Config.factor, Config().own, Config.mine["a"], Config.read(), Config.read_own()
    def of_instance(): return CONFIG.factor
    def nested(): return [factor() for _ in range(2)], (lambda: FACTOR)()
    @wrapped
    def decorated(): return FACTOR
    @functools.lru_cache
    def kept(number): return FACTOR + number
    def calls_kept(): return kept.__wrapped__(1)
    def far(): return inner.answer(), inner.ALSO, ALSO
    def by_name(): return globals()["FACTOR"], getattr(inner, "ALSO")
    def imports():
        import {name}_inner
        from {name}_inner import ALSO
        return {name}_inner.ALSO, ALSO
    def locked(missing=NOTHING):
        with LOCK: return FACTOR, missing is NOTHING, Kind.ONE is Kind(1)
    def helped(): return helper()
    def helper(): return "helped"
    def later_on(): return later()
"""
INNER = """
    ALSO = 1
    def answer(): return ALSO
    def later(): return ALSO
"""


@pytest.fixture
def users(tmp_path, monkeypatch, warm):
    """A module of the user's, which imports another."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"users_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODULE.format(name=name)))
    (tmp_path / f"{name}_inner.py").write_text(textwrap.dedent(INNER))
    importlib.invalidate_caches()
    yield importlib.import_module(name)
    del sys.modules[name], sys.modules[f"{name}_inner"]


def both(function, *arguments):
    """The same here and there."""
    here = function(*arguments)
    ((there, pid),) = pool.run_processes(called, (function, *arguments), [()], 1)
    assert (there, pid != os.getpid()) == (here, True)
    return here


def called(function, *arguments):
    return function(*arguments), os.getpid()


FUNCTIONS = [
    "factor", "table", "weights", "of_class", "of_instance", "nested", "decorated", "calls_kept", "far",
    "by_name", "imports", "locked", "helped", "later_on",
]  # fmt: skip


def change(users):
    users.FACTOR, users.WEIGHTS = 3, np.arange(4)
    users.TABLE.append(7)
    users.OPTIONS["x"] = 1
    users.Config.factor, users.Config.mine["a"], users.CONFIG.factor = 5, 9, 8
    users.inner.ALSO = 11


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_code_names_is_as_it_is_here(users, name):
    function = getattr(users, name)
    before = both(function)
    change(users)
    if name != "helped":
        assert both(function) != before
    both(lambda: getattr(users, name)())
    both(lambda: function())


def test_objects_and_methods_of_the_users_classes(users):
    change(users)
    assert both(users.Config()) == (5, 3)
    assert both(users.Config.read_own) == 5
    assert both(users.Config.read) == 3


def test_what_is_exchanged_for_a_while(users):
    with mock.patch.object(users, "helper", lambda: "by another"), mock.patch.object(users, "FACTOR", 4):
        assert both(users.helped) == "by another"
        assert both(users.factor) == 4
    assert both(users.helped) == "helped"
    assert both(users.factor) == 1


def test_what_a_job_took_over_is_gone_when_it_ends(users):
    users.WEIGHTS = np.arange(9)
    both(users.weights)
    name = users.__name__
    assert in_worker(lambda: vars(sys.modules[name])["".join(("WEI", "GHTS"))]) is None


def test_a_variable_that_cannot_travel_keeps_nothing_from_travelling(users):
    users.FACTOR, users.LOCK = 6, threading.Lock()
    assert both(users.locked) == (6, True, True)


def test_generators_deep_in_a_module_have_streams(users):
    def drawn(n_jobs):
        users.OPTIONS["rng"] = users.Config.rng = np.random.default_rng(0)
        names = {1: 1, 2: 2, 3: 3}
        found = batch_process(names, lambda _: users.OPTIONS["rng"].random(), n_jobs=n_jobs)
        return list(found.results.values()), users.Config.rng.random()

    assert drawn(1) == drawn(2)
    assert len(set(drawn(2)[0])) == 3


@pytest.mark.parametrize("module", ["random", "numpy.random"])
def test_functions_of_a_librarys_own_generator_draw_from_it(warm, module):
    one, other = importlib.import_module(module).random, importlib.import_module(module)

    def drawn(n_jobs):
        other.seed(0)
        return batch_process({1: 1, 2: 2}, lambda _: (one(), other.random()), n_jobs=n_jobs).results

    assert drawn(1) == drawn(2)
    assert len({number for pair in drawn(2).values() for number in pair}) == 4


def test_nothing_is_found_in_a_function_that_names_nothing(users):
    in_worker(users.factor)
    sent = []
    (worker,) = pool._pools[()]._idle
    send, worker.send = worker.send, lambda message: (sent.append(pickle.loads(message)), send(message))
    in_worker(np.sum, [1])
    assert len(next(payload for kind, payload, *_ in sent if kind == "job")) < 200
