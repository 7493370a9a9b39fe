"""A network called at a few fixed batch sizes, which is what a GPU is quick at: buffers that stay in place, copied from
and to pinned memory, and for each size a CUDA graph where that is faster than calling the layers one by one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

SIZES = (1, 8, 32, 128)
"""Ascending. Rows are padded up to the next size; more than the largest go in several pieces."""


class FixedSizes:
    """The network as a function from rows to its output, both NumPy arrays. Rows must not depend on one another."""

    def __init__(self, network: nn.Module, width: int, device: torch.device, sizes: Sequence[int] = SIZES) -> None:
        """Takes the memory and captures the graphs, which also warms up the GPU. `network` is on `device`, in eval mode."""
        self._places = [Place(network, size, width, device) for size in sizes]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        largest = self._places[-1].size
        pieces = [rows[start : start + largest] for start in range(0, max(len(rows), 1), largest)]
        return np.concatenate([self._place_for(len(piece))(piece) for piece in pieces])

    def _place_for(self, rows: int) -> Place:
        return next(place for place in self._places if rows <= place.size)


class Place:
    """The buffers of one batch size, and the quickest way to run the network on them."""

    def __init__(self, network: nn.Module, size: int, width: int, device: torch.device) -> None:
        self.size = size
        on_gpu = device.type == "cuda"
        self._inputs = torch.zeros(size, width, device=device)
        ways: list[Callable[[], torch.Tensor]] = [lambda: network(self._inputs)]
        if on_gpu:
            ways.append(captured(ways[0]))
        with torch.inference_mode():
            self._run = fastest(ways)
            output = self._run()
        self._sent = torch.zeros(size, width, pin_memory=on_gpu)
        self._received = torch.zeros(output.shape, dtype=output.dtype, pin_memory=on_gpu)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The output for at most `size` rows. What earlier calls left in the rows behind them is computed and dropped."""
        self._sent[: len(rows)] = torch.from_numpy(rows)
        with torch.inference_mode():
            self._inputs.copy_(self._sent, non_blocking=True)
            self._received.copy_(self._run(), non_blocking=True)
        synchronize()
        return self._received[: len(rows)].numpy().copy()


def captured(call: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """The same work as a CUDA graph: one launch in place of one for every kernel."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(3):  # libraries choose their kernels and take their memory before the capture
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        output = call()

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay


def fastest(ways: Sequence[Callable[[], torch.Tensor]], rounds: int = 20) -> Callable[[], torch.Tensor]:
    """The one that takes the least time, by the median of some rounds."""
    return ways[0] if len(ways) == 1 else min(ways, key=lambda way: seconds(way, rounds))


def seconds(way: Callable[[], torch.Tensor], rounds: int) -> float:
    """The median time of a call, its work on the GPU included."""
    taken = []
    for _ in range(rounds):
        synchronize()
        began = time.perf_counter()
        way()
        synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def synchronize() -> None:
    """Waits for what the GPU has been given to do."""
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()
