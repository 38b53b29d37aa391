"""When one object is another one."""

import pytest

from sharedmask.errors import SourceChangedError
from sharedmask.remote.version import Version

WAS = Version(10, '"a"', "Mon")


@pytest.mark.parametrize("now", [WAS, Version(10, '"a"'), Version(10), Version(None, '"a"'), Version(None)])
def test_what_is_not_told_is_no_difference(now):
    WAS.check(now, "it")
    now.check(WAS, "it")


@pytest.mark.parametrize(
    "now", [Version(11, '"a"', "Mon"), Version(10, '"b"', "Mon"), Version(10, "", "Tue")]
)
def test_what_is_told_is(now):
    with pytest.raises(SourceChangedError, match="it changed while it was read: it was 10 bytes"):
        WAS.check(now, "it")
