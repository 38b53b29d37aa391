"""A model of a node with many cores, fed with the costs of one core of this one.

Covers: what is measured, what is assumed, the times that follow. Does not cover: measuring on such
a node, which is what to do where there is one.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from benchmarks import floors, rapid, variants
from benchmarks.data import Dataset
from sharedmask import SharedImage

BANDWIDTH = 200e9
_EFFICIENCY = 0.7
_DECODING_TRAFFIC, _TURNING_TRAFFIC, _GATHERING_TRAFFIC, _MASKER_TRAFFIC = 2, 2, 2, 8
_ASSUMPTIONS = f"""Assumed, not measured: memory moves {{bandwidth:.0f}} GB/s for all cores together;
parallel decoding (rapidgzip, or a file of BGZF blocks) reaches {_EFFICIENCY:.0%} of cores times its
rate on one core; gathering and transposing grow with the cores until the memory is busy; a byte
that is decoded, transposed or gathered crosses it {_DECODING_TRAFFIC} times, one that NiftiMasker
handles {_MASKER_TRAFFIC} times; nothing else runs."""


@dataclass(frozen=True)
class Costs:
    """Of one core; bytes of the decoded run per second, and seconds."""

    image: int
    signals: int
    n_masks: int
    decode: float
    """By isal, which is sequential."""
    decode_in_parallel: float
    """By rapidgzip on one core; isal's rate where it is not installed."""
    transpose: float
    gather: float
    masker: float
    """Seconds of one NiftiMasker with the path."""


def measured(dataset: Dataset) -> Costs:
    """On this machine, one thread each."""
    image, signals = dataset.image_bytes, dataset.signal_bytes(len(dataset.masks))
    return Costs(
        image,
        signals,
        len(dataset.masks),
        decode=image / floors.seconds(partial(variants.decompress, dataset.run)),
        decode_in_parallel=image / floors.seconds(partial(rapid.decompress, dataset.run, 1)),
        transpose=_transposition_rate(dataset),
        gather=signals / _seconds_to_gather(dataset),
        masker=floors.seconds(partial(variants.masker_loop, dataset.run, dataset.masks[:1], 1), repeats=1),
    )


def _transposition_rate(dataset: Dataset) -> float:
    block = np.ones((24, int(np.prod(dataset.shape[:3]))), np.float32)
    return block.nbytes / floors.seconds(
        partial(floors.transpose, block, np.empty(block.shape[::-1], block.dtype))
    )


def _seconds_to_gather(dataset: Dataset) -> float:
    masks = variants.load_masks(dataset.masks)
    with SharedImage(dataset.run) as image:
        image.load()
        return floors.seconds(partial(image.mask_parallel, masks))


@dataclass(frozen=True)
class Node:
    """Cores, and the bytes per second that their memory moves."""

    cores: int
    bandwidth: float

    def rate(self, one_core: float, traffic: float, efficiency: float = 1.0) -> float:
        """Bytes per second of work that all cores share."""
        cores = 1 if self.cores == 1 else max(1.0, self.cores * efficiency)
        return min(cores * one_core, self.bandwidth / traffic)

    def decoding(self, costs: Costs) -> float:
        """The faster of one core with isal and all with a parallel decoder."""
        return max(costs.decode, self.rate(costs.decode_in_parallel, _DECODING_TRAFFIC, _EFFICIENCY))


def times(costs: Costs, node: Node) -> dict[str, float]:
    """Seconds on this node."""
    decoding = costs.image / node.decoding(costs)
    turning = costs.image / node.rate(costs.transpose, _TURNING_TRAFFIC)
    gathering = costs.signals / node.rate(costs.gather, _GATHERING_TRAFFIC)
    rounds = -(-costs.n_masks // node.cores)
    traffic = costs.n_masks * costs.image * _MASKER_TRAFFIC / node.bandwidth
    return {
        "extract": decoding,
        "load": max(decoding, turning),
        "masks, resident": gathering,
        "NiftiMasker loop": max(rounds * costs.masker, traffic),
    }


def described(costs: Costs, cores: int, bandwidth: float) -> str:
    """The table, named for what it is."""
    found = {n: times(costs, Node(n, bandwidth)) for n in _doubling(cores)}
    names = list(next(iter(found.values())))
    lines = [f"| cores | {' | '.join(names)} |", f"|---:|{'---:|' * len(names)}"]
    lines += [f"| {n} | {' | '.join(f'{one[name]:.3f} s' for name in names)} |" for n, one in found.items()]
    rates = ", ".join(f"{name} {value / 1e6:,.0f} MB/s" for name, value in _rates(costs))
    return "\n".join([
        f"MODEL, not a measurement: a node of {cores} cores, from the costs of one core of this machine "
        f"({rates}, one NiftiMasker {costs.masker:.2f} s).",
        _ASSUMPTIONS.format(bandwidth=bandwidth / 1e9),
        "",
        *lines,
        "",
    ])  # fmt: skip


def _rates(costs: Costs) -> Iterator[tuple[str, float]]:
    for name in ("decode", "decode_in_parallel", "transpose", "gather"):
        yield name.replace("_", " "), asdict(costs)[name]


def _doubling(cores: int) -> list[int]:
    return sorted({2**i for i in range(cores.bit_length()) if 2**i <= cores} | {cores})
