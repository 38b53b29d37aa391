"""Servers on the loopback that do what servers on the net do: answer, refuse, cut the line, stall."""

import contextlib
import email.utils
import hashlib
import re
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Served:
    """What a server has, and how it behaves; may be changed while it runs."""

    def __init__(self):
        self.files = {}
        self.ranges = True
        self.etags = True
        self.dates = True
        self.lengths = True
        self.listing = False
        self.headers = {}  # of all bodies
        self.latency = 0.0
        self.meeting = None  # a barrier: no request is answered before so many came
        self.answers = []  # (code, headers) of the next requests, before any that is answered as asked
        self.cuts = []  # bytes of a body after which the line is cut, one answer each
        self.drops = False  # the line of who asks for what it lacks
        self.resets = False  # how: by a reset, or by an end
        self.stalls = []  # the same, where nothing comes any more
        self.after = lambda path, sent: None  # called when all but the last bytes of a body were sent
        self.requests = []
        self.bytes_sent = 0
        self.url = ""
        self.released = threading.Event()

    def count(self, name):
        """Requests of a file."""
        return sum(path.partition("?")[0].endswith(name) for path, _ in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        served = self.server.served
        served.requests.append((self.path, dict(self.headers)))
        self.close_connection = True
        time.sleep(served.latency)
        if served.meeting is not None:
            served.meeting.wait()
        if served.answers:
            code, headers = served.answers.pop(0)
            self._short(code, headers)
            return
        name = self.path.partition("?")[0].lstrip("/")
        if name.endswith("/") or not name:
            self._folder(name)
            return
        if name not in served.files:
            if not served.drops:
                self._short(404, {})
            return
        self._body(served, name, served.files[name])

    def _short(self, code, headers, body=b"said"):
        self.send_response(code)
        for key, value in {"Content-Length": len(body), "Connection": "close", **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def _folder(self, name):
        if not self.server.served.listing:
            self._short(403, {})
            return
        below = {
            one[len(name) :].partition("/")[0] for one in self.server.served.files if one.startswith(name)
        }
        page = "".join(f'<a href="{one}">{one}</a>' for one in sorted(below)).encode()
        self._short(200, {"Content-Type": "text/html"}, page)

    def _body(self, served, name, content):
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if served.ranges else None
        start, end = 0, len(content)
        if asked:
            start = int(asked[1])
            end = min(end, int(asked[2]) + 1) if asked[2] else end
            if start >= len(content):
                self._short(416, {"Content-Range": f"bytes */{len(content)}"})
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        else:
            self.send_response(200)
        if served.etags:
            self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
        if served.dates:
            self.send_header("Last-Modified", email.utils.formatdate(1e9, usegmt=True))
        if served.lengths or asked:
            self.send_header("Content-Length", str(end - start))
        for key, value in {"Connection": "close", **served.headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self._send(served, name, content[start:end])

    def _send(self, served, name, body):
        with contextlib.suppress(OSError):  # who asked may have gone
            stall = served.stalls.pop(0) if served.stalls and len(body) > served.stalls[0] else None
            cut = served.cuts.pop(0) if stall is None and served.cuts and len(body) > served.cuts[0] else None
            part = body if cut is stall is None else body[: cut if stall is None else stall]
            for place in range(0, len(part), 65536):
                if place + 65536 >= len(part):
                    served.after(name, len(part))
                self.wfile.write(part[place : place + 65536])
                served.bytes_sent += len(part[place : place + 65536])
            self.wfile.flush()
            if stall is not None:
                served.released.wait(20)
            if cut is not None and served.resets:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # joined at the end

    def handle_error(self, *_):
        pass


@contextlib.contextmanager
def serving():
    """A server of what is put into its ``files``."""
    served = Served()
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.served = served
        served.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield served
        finally:
            served.released.set()
            server.shutdown()
            thread.join()
