"""The house: who may import whom, what importing costs, and what may not appear in the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sharedmask

PACKAGE = Path(sharedmask.__file__).parent

FLOORS = [
    "errors",
    "amounts limits",
    "settings",
    "kernels streams budget usage stores writing luts entries mapped places bids figures pages "
    "fields motion niftis streaming",
    "grids monitor sources segments loading cache journal submission correlation subjects",
    "regions registry pool demo disk picking maps filemaps nfdh5",
    "parameters wire doctor banding steps coverage connectomes spills converting reductions",
    "plans reels",
    "masking films",
    "niimgs holding recall derivatives report batches frames",
    "requests network",
    "image extraction runs",
    "service pipeline cohort",
    "maskers study folders",
    "multimask",
    "cli",
    "bids_cli upkeep_cli",
    "cohort_cli",
    "program",
    "__main__",
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}

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


def sources():
    return {path.stem: path.read_text() for path in PACKAGE.glob("*.py")}


def imported_rooms(text):
    """Rooms that a module imports anywhere in it, lazy imports included."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            first, _, room = node.module.partition(".")
            if first == "sharedmask":
                yield from [room.split(".")[0]] if room else (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.split(".")[1] for alias in node.names if alias.name.startswith("sharedmask.")
            )


def test_every_room_has_a_floor():
    assert set(sources()) - {"__init__"} == set(FLOOR_OF)


@pytest.mark.parametrize("room", sorted(FLOOR_OF))
def test_imports_go_down_only(room):
    for other in set(imported_rooms(sources()[room])) - {"__version__"}:
        assert FLOOR_OF[other] < FLOOR_OF[room], f"{room} imports {other}"


@pytest.mark.parametrize("room", sorted(FLOOR_OF))
def test_no_room_is_too_large(room):
    assert sources()[room].count("\n") <= 620


@pytest.mark.parametrize("room", sorted(FLOOR_OF))
def test_a_room_says_what_it_covers(room):
    text = " ".join(ast.get_docstring(ast.parse(sources()[room])).split())
    assert room == "__main__" or ("Covers:" in text and "not cover" in text)


def modules_after(statement):
    script = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    loaded = modules_after("import sharedmask")
    assert not HEAVY & loaded
    assert not {f"sharedmask.{room}" for room in FLOOR_OF} & loaded


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
    def imports_at_top(text):
        for node in ast.parse(text).body:
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module.split(".")[0]

    costly = {"nilearn", "scipy", "sklearn", "pandas"}
    found = {room for room, text in sources().items() if costly & set(imports_at_top(text))}
    assert found == {"pipeline", "maskers", "multimask"}


def test_public_names_are_there():
    for name in sharedmask.__all__:
        assert getattr(sharedmask, name) is not None
    assert set(sharedmask.__all__) <= set(dir(sharedmask))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sharedmask.nothing


def test_segments_are_created_in_one_place_and_never_attached_by_name():
    calls = [
        (room, node)
        for room, text in sources().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("SharedMemory")
    ]
    assert [room for room, _ in calls] == ["stores"]
    assert "create=True" in ast.unparse(calls[0][1])


def test_only_the_creator_unregisters():
    assert [room for room, text in sources().items() if "unregister(" in text] == ["stores"]


def test_no_pickle_or_eval_of_files():
    for room, text in sources().items():
        called = {ast.unparse(n.func) for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)}
        assert not called & {"eval", "exec", "os.fork"}, room
        if room != "pool":
            assert not any("pickle" in name for name in called), room
