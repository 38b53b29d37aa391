"""Docstrings of public names have what numpydoc asks for: the checks that pyproject.toml lists."""

import inspect
import tomllib
import typing
from pathlib import Path

import pytest
from numpydoc.validate import Validator, get_doc_object, validate

import sharedmask

PACKAGE = Path(sharedmask.__file__).parent
CHECKS = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["numpydoc_validation"][
    "checks"
]


def public(thing):
    """A name's methods, properties and classes' methods that are ours."""
    for name, member in inspect.getmembers_static(thing):
        own = getattr(member, "fget", None) or getattr(member, "__func__", member)
        ours = str(getattr(own, "__module__", "")).startswith("sharedmask.")
        if ours and inspect.isroutine(own) and not name.startswith("_"):
            yield name


class OfKeywords(Validator):
    """Keywords that a ``TypedDict`` names may be described one by one."""

    def __init__(self, obj_name):
        named = self._load_obj(obj_name) if isinstance(obj_name, str) else obj_name
        super().__init__(get_doc_object(named))

    @property
    def signature_parameters(self):
        given = super().signature_parameters
        kinds = typing.get_args(getattr(self.code_obj, "__annotations__", {}).get("parameters"))
        described = set(self.doc_all_parameters) & {*(kinds[0].__annotations__ if kinds else ())}
        if "**parameters" not in self.doc_all_parameters:
            given = tuple(name for name in given if name != "**parameters" or not described)
        return (*given, *described)


@pytest.mark.parametrize("name", [name for name in sharedmask.__all__ if name != "__version__"])
def test_docstrings_say_all_that_there_is(name):
    thing = getattr(sharedmask, name)
    members = public(thing) if inspect.isclass(thing) else ()
    for whole in (name, *(f"{name}.{member}" for member in members)):
        found = validate(f"sharedmask.{whole}", validator_cls=OfKeywords)
        assert [said for said in found["errors"] if said[0] in CHECKS] == [], whole


def test_a_docstring_that_says_less_is_found():
    def nothing(given: int) -> int:
        """Give it back."""
        return given

    said = {code for code, _ in validate(nothing, validator_cls=OfKeywords)["errors"]}
    assert {"PR01", "RT01"} <= said & set(CHECKS)
