"""Objects by HTTP: byte for byte whatever becomes of the line, or an error with its address."""

import random
import time
import urllib.request
from urllib.error import HTTPError

import pytest

from sharedmask.errors import MissingFileError, RemoteError, SourceChangedError
from sharedmask.remote import http, retries
from sharedmask.remote.objects import RemoteFile, look

CONTENT = random.Random(5).randbytes(1_000_000)


def read(url):
    with RemoteFile(url) as file:
        return file.readall()


@pytest.fixture
def url(server):
    server.files["a.bin"] = CONTENT
    return f"{server.url}/a.bin"


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("told", [("etags", "dates"), ("etags",), ("dates",), ()])
def test_bytes_are_the_objects(server, url, ranges, told):
    server.ranges, server.etags, server.dates = ranges, "etags" in told, "dates" in told
    assert read(url) == CONTENT


def test_of_unknown_length(server, url):
    server.ranges = server.lengths = False
    assert look(url).version.nbytes is None
    assert read(url) == CONTENT


@pytest.mark.parametrize(
    ("name", "packed", "refused"),
    [
        ("a.nii", "gzip", True),
        ("a.json", "br", True),
        ("a.nii.gz", "br", True),
        ("a.nii.gz", "gzip", False),  # stored so, as buckets have it
        ("a.nii", "identity", False),
    ],
)
def test_compressed_on_the_way(server, name, packed, refused):
    server.files[name], server.headers = CONTENT, {"Content-Encoding": packed}
    if not refused:
        assert read(f"{server.url}/{name}") == CONTENT
        return
    with pytest.raises(RemoteError, match=rf"{name}: the server sends it compressed \({packed}\)"):
        look(f"{server.url}/{name}")


def test_a_web_page_in_its_place(server, url):
    server.files["a.bin"], server.headers = b"\n<html>log in</html>", {"Content-Type": "text/html"}
    with pytest.raises(MissingFileError, match=r"a\.bin does not exist: the server answers with a web page"):
        look(url)
    server.files["a.bin"] = CONTENT  # which that server calls so, too
    assert read(url) == CONTENT


@pytest.mark.parametrize("content", [b"", b"x", b"y" * 65536, b"z" * 65537])
@pytest.mark.parametrize("ranges", [True, False])
def test_small_ones(server, ranges, content):
    server.files["small"], server.ranges = content, ranges
    assert read(f"{server.url}/small") == content


@pytest.mark.parametrize(("ranges", "resets"), [(True, True), (True, False), (False, False)])
def test_line_cut_twenty_times(server, url, ranges, resets):
    server.ranges, server.resets = ranges, resets
    look(url)
    places = random.Random(3)
    server.cuts = [places.randint(1, 40_000) for _ in range(20)]
    if not ranges:  # each answer begins anew, and comes further than the last
        server.cuts = sorted(places.randint(70_000, 900_000) for _ in range(20))
    assert read(url) == CONTENT
    assert not server.cuts
    assert ranges is (server.bytes_sent < 1.6 * len(CONTENT))


def test_a_line_that_is_always_cut_is_given_up(server, url, monkeypatch):
    look(url)
    server.cuts = [0] * 50
    with pytest.raises(RemoteError, match=r"a\.bin ended after 65536 of 1000000 bytes") as told:
        read(url)
    assert told.type is RemoteError
    assert len(server.cuts) == 50 - retries.TRIES


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_answers_that_pass_by(server, url, code):
    server.answers = [(code, {})] * 3
    assert read(url) == CONTENT


def test_as_long_as_the_server_asks(server, url, monkeypatch):
    pauses = []
    monkeypatch.setattr(retries, "LONGEST_PAUSE", 0.002)
    monkeypatch.setattr(http.Retries, "wait", lambda self, error, asked=0.0, most=None: pauses.append(asked))
    server.answers = [(429, {"Retry-After": "7"}), (503, {})]
    assert read(url) == CONTENT
    assert pauses == [7.0, 0.0]


def test_one_that_stays_busy(server, url):
    server.answers = [(503, {})] * 50
    with pytest.raises(RemoteError, match=r"a\.bin: the server answered 503") as told:
        read(url)
    assert told.type is RemoteError
    assert isinstance(told.value.__cause__, HTTPError)
    assert len(server.requests) == retries.TRIES


@pytest.mark.parametrize("code", [400, 401, 403, 451])
def test_refusals_are_not_asked_again(server, url, code):
    server.answers = [(code, {})]
    with pytest.raises(RemoteError, match=rf"http://127\.0\.0\.1:\d+/a\.bin: the server answered {code}"):
        read(url)
    assert len(server.requests) == 1


@pytest.mark.parametrize("secret", ["", "?token=secret"])
@pytest.mark.parametrize("leads", ["file:///etc/passwd", "https:///nowhere", "/b.bin"])
def test_redirects_that_lead_nowhere(server, leads, secret):
    server.answers = [(302, {"Location": leads + secret})] * 20
    with pytest.raises(RemoteError, match=r"/b\.bin") as told:
        read(f"{server.url}/b.bin")
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server, url, code):
    server.answers = [(code, {"Location": f"{url}?token=secret"})]
    head = look(f"{server.url}/b.bin")
    assert head.content == CONTENT[:65536]
    assert "Range" in server.requests[-1][1]


@pytest.mark.parametrize("host", ["127.0.0.1:abc", "[::1", "me:secret@"])
def test_what_is_no_address(host):
    with pytest.raises(RemoteError, match="is no address") as told:
        read(f"http://{host}/a.bin")
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("query", ["a b", "ü", "a=%20&b[0]=?"])
def test_queries(server, url, query):
    assert read(f"{url}?{query}") == CONTENT
    assert server.requests[0][0].isascii()


@pytest.mark.parametrize("left", [b"", CONTENT[:100_000]])
def test_one_that_became_shorter(server, url, left):
    look(url)
    server.cuts = [200_000]
    server.after = lambda *_: server.files.update({"a.bin": left})
    with pytest.raises(SourceChangedError, match=r"a\.bin (is shorter now|changed while it was read)"):
        read(url)


def test_what_is_not_there(server):
    with pytest.raises(MissingFileError, match="none does not exist: 404"):
        read(f"{server.url}/none")


def test_a_host_that_is_not_there():
    with pytest.raises(RemoteError, match=r"http://nowhere\.invalid/a cannot be read"):
        read("http://nowhere.invalid/a")


def test_a_server_that_is_not_there(server, url):
    with pytest.raises(RemoteError, match="refused") as told:
        read("http://127.0.0.1:1/a")
    assert told.type is RemoteError


def test_a_line_that_stalls(server, url, monkeypatch):
    look(url)
    monkeypatch.setattr(retries, "TIMEOUT", 0.2)
    server.stalls = [100_000, 1]
    assert read(url) == CONTENT
    assert not server.stalls


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("told", [("etags",), ("dates",), ()])
def test_another_object_in_the_place_of_the_first(server, url, ranges, told):
    server.ranges, server.etags, server.dates = ranges, "etags" in told, "dates" in told
    look(url)
    server.cuts = [200_000]

    def replaced(_, sent):
        server.files["a.bin"] = CONTENT[::-1] if told == ("etags",) else CONTENT[::-1] + b"longer"

    server.after = replaced
    with pytest.raises(SourceChangedError, match=r"a\.bin changed while it was read"):
        read(url)


def test_another_object_since_it_was_looked_at(server, url):
    look(url)
    server.files["a.bin"] = CONTENT[::-1]
    with pytest.raises(SourceChangedError):
        read(url)


def test_what_is_read_no_further_leaves_nothing(server, url):
    server.files["a.bin"] = CONTENT * 20
    server.stalls = [19_000_000]
    with RemoteFile(url) as file:
        assert file.read(200_000) == CONTENT[:65536]  # what is known already
        assert file.read(10)
        start = time.monotonic()
    assert time.monotonic() - start < 5


def test_who_asks_is_no_part_of_the_name(server, url):
    asked = url.replace("http://", "http://me:secret@") + "?signature=f00"
    server.answers = [(403, {})]
    with pytest.raises(RemoteError) as told:
        read(asked)
    assert "secret" not in str(told.value)
    assert "f00" not in str(told.value)
    assert server.requests[0][1]["Authorization"] == "Basic bWU6c2VjcmV0"
    assert server.requests[0][0] == "/a.bin?signature=f00"


def test_who_asks_is_not_told_to_others(server, url):
    server.answers = [(302, {"Location": f"{server.url}/a.bin"})]
    assert (
        look(url.replace("http://", "http://me:secret@").replace("a.bin", "b.bin")).content == CONTENT[:65536]
    )
    assert "Authorization" in server.requests[0][1]
    assert "Authorization" not in server.requests[1][1]


def test_names_with_other_letters(server):
    server.files["sub%20a/%C3%BC.bin"] = CONTENT
    assert read(f"{server.url}/sub a/ü.bin") == CONTENT


def test_a_page_that_lists(server, url):
    server.listing = True
    server.files |= {"sub-01/b.bin": b"", "sub-01/func/c.bin": b""}
    assert http.HttpServer(f"{server.url}/sub-01").listed() == ["b.bin", "func"]
    server.listing = False
    assert http.HttpServer(f"{server.url}/sub-01").listed() is None


@pytest.fixture
def of_the_environment(monkeypatch):
    """Nothing is known of the environment as it was, and no opener is installed."""
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)
    http._default.cache_clear()
    yield monkeypatch
    http._default.cache_clear()


@pytest.mark.parametrize("passed_over", ["", "elsewhere.invalid", "127.0.0.1"])
def test_proxies_are_those_of_the_environment(server, url, of_the_environment, passed_over):
    server.files["http://elsewhere.invalid/a.bin"] = CONTENT
    of_the_environment.setenv("http_proxy", server.url)
    of_the_environment.setenv("no_proxy", passed_over)
    if passed_over == "elsewhere.invalid":
        with pytest.raises(RemoteError, match="cannot be read"):
            read("http://elsewhere.invalid/a.bin")
        return
    assert read("http://elsewhere.invalid/a.bin") == CONTENT
    assert {path for path, _ in server.requests} == {"http://elsewhere.invalid/a.bin"}
    server.requests.clear()
    if passed_over:
        assert read(url) == CONTENT
        assert {path for path, _ in server.requests} == {"/a.bin"}


def test_a_program_that_has_an_opener_asks_by_it(server, of_the_environment):
    """Of a proxy that wants a password, say."""
    server.files["http://elsewhere.invalid/a.bin"] = CONTENT
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    passwords.add_password(None, server.url, "me", "secret")
    ours = urllib.request.build_opener(
        urllib.request.ProxyHandler({"http": server.url}), urllib.request.ProxyBasicAuthHandler(passwords)
    )
    ours.addheaders = [("X-Program", "ours")]
    urllib.request.install_opener(ours)
    server.answers = [(407, {"Proxy-Authenticate": 'Basic realm="us"'})]
    assert read("http://elsewhere.invalid/a.bin") == CONTENT
    assert server.requests[1][1]["Proxy-Authorization"] == "Basic bWU6c2VjcmV0"
    assert all(headers["X-Program"] == "ours" for _, headers in server.requests)
    assert all(handler.parent is ours for handler in ours.handlers)


def test_an_opener_of_another_kind_asks_as_it_is(server, url, of_the_environment):
    class Double(urllib.request.OpenerDirector):
        def open(self, request, data=None, timeout=None):
            return urllib.request.build_opener().open(url, timeout=timeout)

    urllib.request.install_opener(Double())
    assert read("http://elsewhere.invalid/b.bin") == CONTENT
    assert {path for path, _ in server.requests} == {"/a.bin"}


def test_who_asked_by_urllib_before_can_be_interrupted(server, url, of_the_environment):
    urllib.request.urlopen(url).close()
    asked = http.HttpServer(url)
    asked.head(9)
    assert asked._asked is not None
