"""The private names of nilearn that sharedmask uses: in one file, and there in the installed nilearn."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest
from nilearn import maskers
from nilearn.maskers.base_masker import BaseMasker

import sharedmask

PACKAGE = Path(sharedmask.__file__).parent
BORDER = PACKAGE / "maskers" / "_nilearn.py"
UNLISTED = {("sources/transform.py", "nilearn.masking", "extrapolate_out_mask")}  # named as if it were public


def imported(path):
    """Module and name of all that a file imports from nilearn."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "nilearn":
            yield from ((node.module, alias.name) for alias in node.names)
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "nilearn")


def private():
    """The table, without importing the module: that fails if a name is gone."""
    for node in ast.parse(BORDER.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PRIVATE":
            return ast.literal_eval(node.value)
    raise AssertionError("no table")


def sources_of(masker):
    """nilearn's text that makes a masker."""
    modules = {kind.__module__ for kind in masker.__mro__ if kind.__module__.startswith("nilearn.")}
    return "".join(inspect.getsource(importlib.import_module(module)) for module in modules)


@pytest.mark.parametrize(("module", "name"), sorted({*imported(BORDER), *(one[1:] for one in UNLISTED)}))
def test_nilearn_has_the_name(module, name):
    assert hasattr(importlib.import_module(module), name), f"this nilearn lacks {module}.{name}"


@pytest.mark.parametrize(("name", "kind"), private().items())
def test_nilearns_masker_has_the_attribute(name, kind):
    masker = BaseMasker if kind == "BaseMasker" else getattr(maskers, kind)
    there = hasattr(masker, name) or f"self.{name}" in sources_of(masker)
    assert there, f"this nilearn lacks {kind}.{name}"


def test_private_names_are_imported_at_the_border_only():
    found = {
        (str(path.relative_to(PACKAGE)), module, name)
        for path in PACKAGE.rglob("*.py")
        if path != BORDER
        for module, name in imported(path)
        if name not in getattr(importlib.import_module(module), "__all__", ())
    }
    assert found == UNLISTED


@pytest.mark.parametrize(
    "module", ["base", "nifti", "labels", "maps", "spheres", "multi", "runs", "elements"]
)
def test_the_table_names_what_is_overridden_or_set(module):
    """Whatever begins with an underscore here and in nilearn's maskers."""
    nilearns = {name for kind in vars(maskers).values() if inspect.isclass(kind) for name in dir(kind)}
    kinds = (maskers.NiftiMasker, maskers.NiftiLabelsMasker, maskers.NiftiMapsMasker)
    texts = "".join(map(sources_of, (*kinds, maskers.NiftiSpheresMasker, maskers.SurfaceMasker)))
    used = set()
    for node in ast.walk(ast.parse((PACKAGE / "maskers" / f"{module}.py").read_text())):
        name = getattr(node, "name", None) or getattr(node, "attr", None)
        if isinstance(node, ast.FunctionDef | ast.Attribute) and name.startswith("_") and name[1] != "_":
            used.add(name)
    theirs = {name for name in used if name in nilearns or f"self.{name}" in texts}
    assert theirs <= set(private()) | {"_n_features_out"}  # which is scikit-learn's
