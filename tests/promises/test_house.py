"""The house: who may import whom, what importing costs, and what may not appear in the source."""

import ast
import functools
import itertools
import random
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import sharedmask

PACKAGE = Path(sharedmask.__file__).parent
TESTS = Path(__file__).parents[1]

HEAVY = {
    "nilearn",
    "scipy",
    "pandas",
    "sklearn",
    "joblib",
    "h5py",
    "matplotlib",
    "psutil",
    "click",
    "tqdm",
    "isal",
    "multiprocessing.shared_memory",
    "multiprocessing.resource_tracker",
}


@functools.cache
def sources():
    """The text of each module, by its dotted name within the package."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path.read_text()
        for path in PACKAGE.rglob("*.py")
        if path.name != "_build.py"  # which builds write
    }


@functools.cache
def trees():
    return {module: ast.parse(text) for module, text in sources().items()}


@functools.cache
def nodes(module):
    return list(ast.walk(trees()[module]))


MODULES = sorted(sources())
PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def test_packages_import_to_the_left_only():
    done = subprocess.run(
        [sys.executable, "-m", "importlinter.cli", "lint"], cwd=PACKAGE.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_module_is_too_large():
    assert not [module for module, text in sources().items() if text.count("\n") > 500]


def test_a_module_has_its_tests():
    """In a file of its name; a protocol in that of its contract."""
    own = [name for name in MODULES if "." in name and "__init__" not in name]
    assert not [module for module in own if not has_tests(*module.split("."))]


def has_tests(package, name):
    files = [TESTS / folder / f"test_{name.removeprefix('_')}.py" for folder in (package, "contracts")]
    return any(path.exists() and "def test_" in path.read_text() for path in files)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_three_to_fifteen_modules(package):
    assert 3 <= len(list((PACKAGE / package).glob("*.py"))) - 1 <= 15


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "cli"])
def test_a_package_lists_its_modules_from_the_bottom_up(package):
    text = ast.get_docstring(trees()[f"{package}.__init__"])
    listed = text.partition("From the bottom up::")[2].split()
    modules = {path.stem for path in (PACKAGE / package).glob("*.py")} - {"__init__"}
    assert sorted(listed) == sorted(modules)
    for place, module in enumerate(listed):
        for node in nodes(f"{package}.{module}"):
            if isinstance(node, ast.ImportFrom):
                below = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
                above = {f"sharedmask.{package}.{other}" for other in listed[place:]}
                assert not below & above, module


def test_a_module_says_what_it_covers():
    assert not [module for module in MODULES if not says_what_it_covers(module)]


def says_what_it_covers(module):
    head = " ".join(ast.get_docstring(trees()[module]).split())
    return module in ("__init__", "__main__", "_version") or ("Covers:" in head and "not cover" in head)


def names_in_the_source():
    """Modules and packages, and whatever stands in code, docstrings left out."""
    found = {part for module in MODULES for part in module.split(".")}
    for module in MODULES:
        docstrings = {node.value for node in nodes(module) if isinstance(node, ast.Expr)}
        for node in nodes(module):
            found |= {getattr(node, kind, None) for kind in ("id", "attr", "arg", "name")}
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
                found |= set(re.findall(r"\w+", node.value))
    return found


def test_names_in_heads_exist():
    known = names_in_the_source()
    named = {
        (module, part)
        for module, tree in trees().items()
        for name in re.findall(r"``([a-z_][\w.]*)``", ast.get_docstring(tree) or "")
        for part in name.split(".")
    }
    assert len(named) > 100
    assert not {(module, part) for module, part in named if part not in known}


def test_a_bare_name_in_a_head_is_that_of_one_module():
    """Of its own package, of a package, or of one module in all of the house."""
    places = [module.split(".") for module in MODULES]
    for module, tree in trees().items():
        for name in re.findall(r"``([a-z_]+)``", ast.get_docstring(tree) or ""):
            homes = {tuple(place[:-1]) for place in places if place[-1] == name}
            is_own = tuple(module.split(".")[:-1]) in homes
            assert is_own or name in PACKAGES or len(homes) < 2, (module, name)


def modules_after(statement):
    script = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    loaded = modules_after("import sharedmask")
    assert not HEAVY & loaded
    assert not {f"sharedmask.{module}" for module in MODULES if not module.startswith("_")} & loaded


def test_importing_an_image_loads_nothing_that_few_calls_need():
    """Beside what numpy and nibabel load."""
    few = {"multiprocessing", "numpy.random", "csv", "html", "secrets"}
    ours = {"workers.pool", "image.glm", "image.niimg", "surfaces.surface", "remote.objects", "regions.views"}
    assert not (few | {f"sharedmask.{one}" for one in ours}) & (
        modules_after("from sharedmask import SharedImage") - modules_after("import numpy, nibabel")
    )


def test_using_an_image_loads_no_nilearn():
    script = """
import numpy as np, nibabel as nib
from sharedmask import SharedImage
with SharedImage(nib.Nifti1Image(np.ones((3, 3, 3, 4), "i2"), np.eye(4))) as image:
    image.mask_parallel([np.ones((3, 3, 3), bool)], n_jobs=2)
    image.reduce([np.ones((3, 3, 3), bool)])
"""
    # scipy's top package comes with nibabel.
    assert not {"nilearn", "pandas", "sklearn", "h5py", "matplotlib"} & modules_after(script)


def test_only_the_maskers_import_nilearn_at_their_top():
    def imports_at_top(tree):
        for node in tree.body:
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module.split(".")[0]

    costly = {"nilearn", "scipy", "sklearn", "pandas"}
    found = {module for module, tree in trees().items() if costly & set(imports_at_top(tree))}
    maskers = (
        "_nilearn",
        "base",
        "elements",
        "extractors",
        "inputs",
        "labels",
        "maps",
        "multi",
        "nifti",
        "runs",
        "spheres",
        "surfaces",
    )
    assert found == {f"maskers.{name}" for name in maskers}


def test_what_is_imported_is_required():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    told = [*project["dependencies"], *itertools.chain(*extras)]
    required = {re.match(r"[\w-]+", one)[0] for one in told}
    imported = {name.split(".")[0] for module in MODULES for name in all_imports(module)}
    names = {"sklearn": "scikit-learn", "lazy_loader": "lazy-loader"}
    libraries = imported - set(sys.stdlib_module_names) - {"sharedmask", "_posixshmem"}
    assert {names.get(name, name) for name in libraries} <= required


def all_imports(module):
    for node in nodes(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_public_names_are_there():
    for name in sharedmask.__all__:
        assert getattr(sharedmask, name) is not None
    assert set(sharedmask.__all__) <= set(dir(sharedmask))
    with pytest.raises(AttributeError, match="nothing"):
        _ = sharedmask.nothing


def test_segments_are_created_in_one_place_and_never_attached_by_name():
    calls = [
        (module, node)
        for module in MODULES
        for node in nodes(module)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("SharedMemory")
    ]
    assert [module for module, _ in calls] == ["storage.memory"]
    assert "create=True" in ast.unparse(calls[0][1])


def test_only_the_creator_unregisters():
    assert [module for module, text in sources().items() if "tracker.unregister(" in text] == [
        "storage.memory"
    ]


def test_locks_are_made_in_one_place():
    """Which makes them anew in a forked child; ``platform`` has one for systems that do not fork."""
    makes = re.compile(
        r"threading\.(R?Lock|Condition|\w*Semaphore|Event|Barrier)\(|import .*\bcached_property"
    )
    others = {
        name: text for name, text in sources().items() if name not in ("system.process", "system.platform")
    }
    lines = [line for text in others.values() for line in text.splitlines()]
    made = [line for line in lines if makes.search(line)]
    assert [line for line in made if "sharedmask.system.process" not in line] == []


def test_no_pickle_or_eval_of_files():
    for module in MODULES:
        called = {ast.unparse(node.func) for node in nodes(module) if isinstance(node, ast.Call)}
        forks = set() if module == "workers.template" else {"os.fork"}  # which has no threads
        assert not called & ({"eval", "exec"} | forks), module
        if not module.startswith("workers."):
            assert not any("pickle" in name for name in called), module


def test_a_folder_without_git_has_one_version():
    build = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["hatch"]["version"]
    assert f'"{build["fallback-version"]}"' in (PACKAGE / "_version.py").read_text()


def test_what_workflows_run_is_in_the_noxfile():
    root = PACKAGE.parent
    text = "".join(path.read_text() for path in (root / ".github/workflows").glob("*.yml"))
    lists = ", ".join(re.findall(r"session: \[(.*)\]", text)).split(", ")
    run = {*re.findall(r"nox -s \"?([a-z-]+)", text), *lists}
    assert len(run) > 5
    there = re.findall(r"^def (\w+)\(session|name=\"([\w-]+)\"", (root / "noxfile.py").read_text(), re.M)
    assert run <= {name for names in there for name in names}


def test_no_module_of_tests_holds_a_generator():
    """It is the user's to workers, each of which imports the module for it: seconds at each start of one."""
    tests = str(Path(__file__).parents[1])
    kinds = (np.random.Generator, np.random.RandomState, random.Random)
    loaded = [one for one in sys.modules.values() if str(getattr(one, "__file__", "")).startswith(tests)]
    assert len(loaded) > 5
    held = [
        (one.__name__, name)
        for one in loaded
        for name, value in list(vars(one).items())
        if isinstance(value, kinds)
    ]
    assert held == []
