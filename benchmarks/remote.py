"""Remote: a run on a server beside the same run here, in time and memory.

Covers: a server on the loopback that answers at once, after 50 ms, and one that cuts the line. Does not
cover: what goes wrong besides (tests), lines that are slower than decoding.

The server hands its file to the kernel (``sendfile``), so that it takes next to nothing of the cores that
decode. It answers one request by each connection, as the tests' servers do.
"""

import argparse
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path

from benchmarks import machine, report
from benchmarks.data import ROOT, default_folder
from benchmarks.report import Bar, Row
from benchmarks.timing import Times

_SHAPE, _N_TIMEPOINTS, _N_REGIONS = (64, 64, 40), 470, 99
_RUN, _ATLAS = "sub-01_task-rest_bold.nii.gz", "atlas.nii.gz"
_SERVERS = {"loopback": (0.0, 0), "50 ms for each answer": (0.05, 0), "the line cut 20 times": (0.0, 20)}
"""Seconds before each answer, and how often the line is cut."""
_BARS = {"loopback": 1.15, "50 ms for each answer": 1.5}
_MORE = 16.0  # MiB beside the peak of the local file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--data", type=Path, default=default_folder())


def run(arguments: argparse.Namespace) -> int:
    facts, home = machine.facts(), arguments.data / "remote"
    if not (home / _RUN).exists():
        home.mkdir(parents=True, exist_ok=True)
        _said("make", str(home))
    print(f"{machine.described(facts)}\n{(home / _RUN).stat().st_size / 1e6:.0f} MB", flush=True)
    found: dict[str, list[tuple[float, float, str]]] = {}
    with ExitStack() as stack:
        places = {"local": str(home)}
        places |= {name: stack.enter_context(_Served(home, *how)).url for name, how in _SERVERS.items()}
        _extracted(home, str(home))  # now its pages are in memory
        for number in range(arguments.repeats):  # in turns: the machine is another one a minute later
            for name, place in places.items():
                if number == 0 or not _SERVERS.get(name, (0, 0))[1]:  # the line is cut in the first pass
                    found.setdefault(name, []).append(_extracted(home, place))
    return report.conclude(list(_rows(found)), arguments.json, {"machine": facts, "shape": _SHAPE})


def _rows(found: dict[str, list[tuple[float, float, str]]]) -> list[Row]:
    times = Times({name: [one[0] for one in several] for name, several in found.items()})
    peaks = {name: statistics.median(one[1] for one in several) for name, several in found.items()}
    right, rows = found["local"][0][2], []
    for name in _SERVERS:
        wrong = any(one[2] != right for one in found[name])
        limit = _BARS.get(name)
        bar = None if limit is None else Bar(limit, at_most=True)
        ratio, what = times.ratio(name, "local"), ("TIME: extract, mean of regions", name)
        rows.append(Row(*what, times.median(name), times.median("local"), ratio=ratio, bar=bar, wrong=wrong))
    for name in _SERVERS:
        more, what = peaks[name] - peaks["local"], ("MEMORY: peak; ratio: MiB more", name)
        bar = Bar(_MORE, at_most=True)
        rows.append(Row(*what, peaks[name], peaks["local"], unit="MiB", ratio=more, bar=bar))
    return rows


def _extracted(home: Path, place: str) -> tuple[float, float, str]:
    """Seconds, MiB at the peak, and a digest of what came."""
    seconds, peak, digest = json.loads(_said("extract", f"{place}/{_RUN}", str(home / _ATLAS)))
    return seconds, peak, digest


def _said(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.remote", *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True).stdout


class _Served:
    """A server in a process of its own, until the context ends."""

    def __init__(self, home: Path, latency: float, n_cuts: int) -> None:
        command = [sys.executable, "-m", "benchmarks.remote", "serve", str(home), str(latency), str(n_cuts)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def __enter__(self) -> "_Served":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # its input ends, and with it the server


# --- in processes of their own -------------------------------------------------------------------


def _extract(run: str, atlas: str) -> None:
    from sharedmask import extract

    extract(atlas, atlas, strategy="mean")  # all is imported
    began = time.perf_counter()
    table = extract(run, atlas, strategy="mean")
    seconds, status = time.perf_counter() - began, Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]
    print(json.dumps([seconds, peak, blake2b(table.tobytes()).hexdigest()]))


def _serve(home: str, latency: str, n_cuts: str) -> None:
    size = os.path.getsize(f"{home}/{_RUN}")
    draw = random.Random(1)
    cuts = [draw.randrange(100_000, size // 25) for _ in range(int(n_cuts))]
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(f"http://127.0.0.1:{server.getsockname()[1]}", flush=True)

        def accept() -> None:
            while True:
                line, _ = server.accept()
                threading.Thread(
                    target=_answer, args=(line, home, size, float(latency), cuts), daemon=True
                ).start()

        threading.Thread(target=accept, daemon=True).start()
        sys.stdin.read()


def _answer(line: socket.socket, home: str, size: int, latency: float, cuts: list[int]) -> None:
    with line, line.makefile("rb") as asked:
        head = b"".join(iter(asked.readline, b"\r\n")).decode()
        time.sleep(latency)
        name = head.split(" ")[1].lstrip("/")
        if name != _RUN:
            line.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        span = re.search(r"Range: bytes=(\d+)-(\d*)", head, re.IGNORECASE)
        start = int(span[1]) if span else 0
        end = min(int(span[2]) + 1, size) if span and span[2] else size
        told = f"206 Partial\r\nContent-Range: bytes {start}-{end - 1}/{size}" if span else "200 OK"
        said = f'HTTP/1.1 {told}\r\nETag: "one"\r\nContent-Length: {end - start}\r\nConnection: close\r\n\r\n'
        count = end - start
        if cuts and count > cuts[-1]:
            count = cuts.pop()
        with open(f"{home}/{name}", "rb") as file:
            try:
                line.sendall(said.encode())
                line.sendfile(file, start, count)
            except OSError:  # who asked has gone
                return


def _make(home: str) -> None:
    """A run of int16 that gzip leaves half of, and an atlas."""
    import nibabel as nib
    import numpy as np
    from isal import igzip

    draw = np.random.default_rng(0)
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    labels = draw.integers(0, _N_REGIONS + 1, _SHAPE).astype(np.int16)
    nib.save(nib.Nifti1Image(labels, affine), f"{home}/{_ATLAS}")
    header = nib.Nifti1Header()
    header.set_data_shape((*_SHAPE, _N_TIMEPOINTS))
    header.set_data_dtype(np.int16)
    header.set_zooms((3.0, 3.0, 3.0, 2.0))
    header.set_sform(affine, 1)
    header.set_xyzt_units("mm", "sec")
    header["vox_offset"], header["magic"] = 352, b"n+1"
    still = draw.normal(1000, 200, _SHAPE)
    with igzip.open(f"{home}/.partial", "wb", compresslevel=1) as file:
        file.write(header.binaryblock + b"\0" * 4)
        for _ in range(_N_TIMEPOINTS):
            file.write((still + draw.normal(0, 20, _SHAPE)).astype("<i2").tobytes(order="F"))
    os.replace(f"{home}/.partial", f"{home}/{_RUN}")


if __name__ == "__main__":
    {"extract": _extract, "serve": _serve, "make": _make}[sys.argv[1]](*sys.argv[2:])
