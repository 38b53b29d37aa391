"""Trees: the folders of a data set on a server, as one walk listed them.

Covers: which files it has and what tells each from another in its place, without asking again. Does not
cover: walking (``http``, ``filesystems``), which files are runs (``study.bids``).

What a walk found is believed until the next one of the same data set.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field

from sharedmask.records import dataclass


@dataclass
class Tree:
    """Files below a folder, by folder and name, each with what tells it from others; "" if nothing does."""

    root: str
    endings: tuple[str, ...]
    """Of the files that it has; nothing is known of others."""
    folders: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, root: str, endings: tuple[str, ...], found: Iterable[tuple[str, str, str]]) -> "Tree":
        """Of folders below ``root``, names and identities."""
        tree = cls(root.rstrip("/"), endings)
        tree.folders[tree.root] = {}
        for folder, name, identity in found:
            names = tree.folders.setdefault(f"{tree.root}/{folder}".rstrip("/"), {})
            if name.endswith(endings):
                names[name] = identity
        return tree


_trees: dict[str, Tree] = {}


def keep(tree: Tree) -> Tree:
    """Believe it from now on."""
    _trees[tree.root] = tree
    return tree


def forget() -> None:
    """Ask servers again."""
    _trees.clear()


def names_of(folder: str) -> Mapping[str, str] | None:
    """Names in a folder with their identities; None if nothing is known of it."""
    tree = _tree_with(folder)
    return None if tree is None else tree.folders[folder.rstrip("/")]


def _tree_with(folder: str) -> Tree | None:
    return next((tree for tree in _trees.values() if folder.rstrip("/") in tree.folders), None)


def folders_of(root: str, name: str) -> Iterator[tuple[str, list[str]]]:
    """Of a tree's folders of this name: the path that leads to each, and the names in it; sorted."""
    for folder, names in sorted(_trees[root.rstrip("/")].folders.items()):
        parent, _, last = folder.rpartition("/")
        if last == name and parent.startswith(root):
            yield parent.removeprefix(root.rstrip("/")).lstrip("/"), sorted(names)


def identity_of(url: str) -> str | None:
    """What tells a file from others; "" if nothing does, None if none is known there."""
    folder, _, name = url.rpartition("/")
    return (names_of(folder) or {}).get(name)


def lacks(url: str) -> bool:
    """Whether a walk found no such file where it looked for such."""
    tree = _tree_with(url.rpartition("/")[0])
    return tree is not None and identity_of(url) is None and url.endswith(tree.endings)
