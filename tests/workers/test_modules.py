"""Workers have the user's modules as they are here."""

import functools
import importlib
import os
import sys
import textwrap
import types

import numpy as np
import pytest
from jobs import in_worker

from sharedmask.compute import kernels
from sharedmask.workers import modules, pool


@pytest.fixture
def module(tmp_path, monkeypatch, warm):
    """Write it, and import it by the name that it has for this test."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"users_{tmp_path.name}"

    class Written:
        path = tmp_path / f"{name}.py"

        def write(self, text):
            self.path.write_text(textwrap.dedent(text))
            importlib.invalidate_caches()
            return self

        def imported(self):
            return importlib.import_module(name)

    yield Written()
    sys.modules.pop(name, None)


def both(function):
    """The same here and there."""
    here, there = function(), in_worker(function)
    assert here == there
    return here


def test_a_folder_newly_on_the_path(module):
    module.write("def answer(): return 'found'")
    assert both(module.imported().answer) == "found"


def test_a_module_that_was_reloaded(module):
    users = module.write("def answer(): return 'old'").imported()
    assert both(users.answer) == "old"
    module.write("def answer(): return 'rather new'")
    importlib.reload(users)
    assert both(users.answer) == "rather new"
    assert both(lambda: users.answer()) == "rather new"


def test_a_module_that_was_imported_anew(module):
    users = module.write("def answer(): return 'old'").imported()
    assert both(users.answer) == "old"
    del sys.modules[users.__name__]
    assert both(module.write("def answer(): return 'rather new'").imported().answer) == "rather new"


def test_a_file_that_was_changed_and_not_reloaded(module):
    """Workers that start later would import what the caller does not run."""
    users = module.write("def answer(): return 'old'").imported()
    assert both(users.answer) == "old"
    module.write("def answer(): return 'rather new'")
    pool.shutdown()
    assert both(users.answer) == "old"
    assert both(lambda: users.answer()) == "old"
    importlib.reload(users)
    assert both(users.answer) == "rather new"


def test_a_module_that_the_path_no_longer_leads_to(module, monkeypatch, tmp_path):
    users = module.write("def answer(): return 'found'").imported()
    other = tmp_path / "other"
    other.mkdir()
    (other / module.path.name).write_text("def answer(): return 'another one'")
    monkeypatch.syspath_prepend(other)
    assert both(users.answer) == "found"


def test_a_module_that_no_file_has(warm):
    made = types.ModuleType("made_at_run_time")
    exec("def answer(): return 'made'", made.__dict__)
    sys.modules["made_at_run_time"] = made
    try:
        assert both(made.answer) == "made"
    finally:
        del sys.modules["made_at_run_time"]


def test_what_another_module_holds_of_a_reloaded_one(module, tmp_path):
    """Its old function, which no import would give."""
    users = module.write("def answer(): return 'old'").imported()
    (tmp_path / "users_other.py").write_text(
        f"from {users.__name__} import answer\ndef asked(): return answer()"
    )
    try:
        other = importlib.import_module("users_other")
        assert both(other.asked) == "old"
        module.write("def answer(): return 'rather new'")
        importlib.reload(users)
        assert both(other.asked) == "old"
    finally:
        sys.modules.pop("users_other", None)


def test_modules_are_looked_at_for_what_may_name_them_alone(module, monkeypatch):
    users, looks = module.write("def answer(): return 'found'\nclass Own(list): pass").imported(), []
    look = modules.known.look
    monkeypatch.setattr(modules.known, "look", lambda: (looks.append(1), look()))
    pool.run_processes(os.getpid, (), [()], 1)
    pool.run_processes(np.sum, (np.ones((2, 3)),), [(1,)], 1)
    pool.run_processes(np.sum, (), [(np.ones((2, 3)), 1)], 1)
    assert not looks
    wrapped = functools.wraps(np.mean)(lambda: users.answer())
    for own in (users.answer, users.Own(), users, wrapped, lambda: 0):
        pool.run_processes(id, (own,), [()], 1)
        pool.run_processes(id, (), [(own,)], 1)
    assert len(looks) == 10


@pytest.mark.parametrize(
    ("thing", "is_librarys"),
    [
        (np.mean, True), (len, True), (np.ndarray, True), (np.ones(2), True), (kernels, True),
        (kernels.gather, True),
        (lambda: 0, False), (both, False), (types.ModuleType("made_by_nobody"), False),
        (type("Own", (np.ndarray,), {}), False), (functools.wraps(np.mean)(lambda: 0), False),
    ],
)  # fmt: skip
def test_what_is_a_librarys(thing, is_librarys):
    assert modules.is_librarys(thing) == is_librarys


def test_another_thread_may_import_meanwhile(monkeypatch):
    def in_between(_):
        raise RuntimeError("dictionary changed size during iteration")

    monkeypatch.setattr(modules, "reversed", in_between, raising=False)
    assert not modules.is_librarys(both)
    assert modules.is_librarys(np.mean)
