"""Trees: what one walk found is known without asking."""

import pytest

from sharedmask.remote import objects, trees

FOUND = [
    ("", "a.json", "1"),
    ("", "page.html", "2"),
    ("sub-1/func", "b.nii.gz", ""),
    ("sub-1/func", "c.json", "3"),
]


@pytest.fixture(autouse=True)
def tree():
    yield trees.keep(trees.Tree.of("s3://bucket/data/", (".json", ".nii.gz"), FOUND))
    trees.forget()


def test_what_is_known():
    assert objects.listed("s3://bucket/data/sub-1/func") == ("b.nii.gz", "c.json")
    assert objects.exists("s3://bucket/data/a.json") and not objects.exists("s3://bucket/data/z.json")
    assert objects.identity("s3://bucket/data/sub-1/func/c.json") == "3"
    assert list(trees.folders_of("s3://bucket/data", "func")) == [("sub-1", ["b.nii.gz", "c.json"])]


def test_what_is_not():
    assert trees.names_of("s3://bucket/dat") is trees.names_of("s3://bucket/data/sub-2") is None
    assert not trees.lacks("s3://bucket/data/page.html") and not trees.lacks("s3://other/a.json")
    assert trees.identity_of("s3://bucket/data/page.html") is None
