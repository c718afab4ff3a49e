"""Batches on their way to the device and results on their way back, while the device computes.

On a CPU the same code runs: batches are made ahead by a thread, and nothing is copied.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from influray.model.batch import Batch, Packing, make_batch, make_packed_batch
from influray.protocols import TokenizedExample

Item = TypeVar("Item")
Made = TypeVar("Made")


def one_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """Yield make(item) of all items in order; while one is in use, a thread makes the next, and no more than that.

    What `make` raises arrives where its item would, unchanged.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        coming: deque[Future[Made]] = deque()
        for item in items:
            coming.append(thread.submit(make, item))
            if len(coming) == 2:
                yield coming.popleft().result()  # nothing here holds on to it
        while coming:
            yield coming.popleft().result()


@dataclass(frozen=True, slots=True)
class SentBatch:
    """A batch on its way to a device."""

    batch: Batch
    sent: Any  # a CUDA event; None on a CPU, where there is nothing to wait for

    def arrive(self) -> Batch:
        """Return the batch; what the current stream does next comes after its arrival, and nobody waits."""
        if self.sent is not None:
            stream = torch.cuda.current_stream(self.batch.input_ids_BS.device)
            stream.wait_event(self.sent)
            for part in (self.batch, self.batch.packing):
                for tensor in _tensors(part).values():
                    tensor.record_stream(stream)  # it was allocated on another one
        return self.batch


class BatchSender:
    """Makes batches in pinned memory and copies them to a device on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._made_on = device if self._stream is None else torch.device("cpu")

    def send(self, examples: Sequence[TokenizedExample]) -> SentBatch:
        """Return the examples, each of which must have a trained token, as a batch on its way."""
        return self._on_its_way(make_batch(examples, self._made_on))

    def send_packed(self, stacks: Sequence[Sequence[TokenizedExample]]) -> SentBatch:
        """Return the examples of all stacks as a packed batch on its way."""
        return self._on_its_way(make_packed_batch(stacks, self._made_on))

    def _on_its_way(self, batch: Batch) -> SentBatch:
        if self._stream is None:
            return SentBatch(batch, None)
        with torch.cuda.stream(self._stream):
            packing = None if batch.packing is None else replace(batch.packing, **self._copied(batch.packing))
            there = replace(batch, packing=packing, **self._copied(batch))
            return SentBatch(there, self._stream.record_event())

    def _copied(self, part: Batch | Packing) -> dict[str, Tensor]:
        pinned = {name: tensor.pin_memory() for name, tensor in _tensors(part).items()}
        return {name: tensor.to(self._device, non_blocking=True) for name, tensor in pinned.items()}


class Results:
    """Tensors of one device on their way to the host."""

    def __init__(self, *tensors: Tensor) -> None:
        self._host, self._copied = tensors, None
        device = tensors[0].device
        if device.type == "cuda":
            self._host = tuple(torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors)
            for host, tensor in zip(self._host, tensors, strict=True):
                host.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.current_stream(device).record_event()

    def wait(self) -> list[np.ndarray]:
        """Return the tensors as arrays when they have come; what was computed after them is not waited for."""
        if self._copied is not None:
            self._copied.synchronize()
        return [host.numpy() for host in self._host]


def _tensors(part: Batch | Packing | None) -> dict[str, Tensor]:
    values = {} if part is None else {field.name: getattr(part, field.name) for field in fields(part)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
