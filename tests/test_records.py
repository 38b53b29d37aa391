"""Data classes, beside the standard library's."""

import copy
import dataclasses
import inspect
import pickle
from dataclasses import field

import pytest

from sharedmask import records


def made_by(dataclass):
    @dataclass(frozen=True)
    class Point:
        x: int
        y: str = "a"
        seen: list = field(default_factory=list, repr=False, compare=False)

    @dataclass(frozen=True)
    class Place(Point):
        depth: int = 3
        doubt: str = field(default="", kw_only=True)
        rest: None = field(default=None, init=False)

        def __post_init__(self):
            if self.depth < 0:
                raise ValueError(self.depth)

    @dataclass
    class Counter:
        count: int = 0

    return Point, Place, Counter


@dataclasses.dataclass
class Given:
    args: tuple = ()
    named: dict = field(default_factory=dict)


CALLS = [
    Given((1,)),
    Given((1, "b", [2])),
    Given((), {"x": 1, "seen": [1]}),
    Given((1,), {"y": "b"}),
    Given(),
    Given((1, 2, 3, 4, 5)),
    Given((1,), {"x": 1}),
    Given((1,), {"unknown": 1}),
    Given((1,), {"depth": -1}),
    Given((1,), {"rest": 1}),
    Given((1,), {"doubt": "why"}),
    Given((1, "b", [], 3, "why")),
]


def outcome(cls, call):
    try:
        one, other = cls(*call.args, **call.named), cls(*call.args, **call.named)
    except (TypeError, ValueError) as error:
        return type(error)
    changed = dataclasses.replace(one, x=7)
    same = (one == other, hash(one) == hash(other), one == changed, one == "text", copy.copy(one) == one)
    return repr(one), dataclasses.asdict(one), dataclasses.astuple(changed), same, cls.__match_args__


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("which", [0, 1])
def test_classes_are_those_of_the_standard_library(which, call):
    ours, theirs = made_by(records.dataclass)[which], made_by(dataclasses.dataclass)[which]
    assert outcome(ours, call) == outcome(theirs, call)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_calls_are_described(which):
    ours, theirs = made_by(records.dataclass)[which], made_by(dataclasses.dataclass)[which]
    found, expected = inspect.signature(ours).parameters, inspect.signature(theirs).parameters
    assert [*found] == [*expected]
    given = [name for name, one in expected.items() if one.default is inspect.Parameter.empty]
    assert [name for name, one in found.items() if one.default is inspect.Parameter.empty] == given


@pytest.mark.parametrize("dataclass", [records.dataclass, dataclasses.dataclass])
def test_what_is_frozen_does_not_change(dataclass):
    point, _, counter = (cls(1) for cls in made_by(dataclass))
    with pytest.raises(dataclasses.FrozenInstanceError, match="x"):
        point.x = 2
    with pytest.raises(dataclasses.FrozenInstanceError, match="x"):
        del point.x
    counter.count += 1
    assert counter.count == 2
    with pytest.raises(TypeError, match="unhashable"):
        hash(counter)


@records.dataclass(frozen=True, eq=False)
class Single:
    name: str


def test_what_has_no_equal_is_itself():
    one = Single("a")
    assert one != Single("a")
    assert {one: 1}[one] == 1
    assert pickle.loads(pickle.dumps(one)).name == "a"
