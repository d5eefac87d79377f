"""The device context: what outlives trials in a worker. The kernel takes every shared input through it."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

from hpsearch.machine import total_memory

T = TypeVar("T")
CPU_SHARE, GPU_SHARE = 0.25, 0.4  # of all memory, for activations that trials share


class DeviceContext:
    """One device with what was built on it, by key: resident data, pretrained weights, cached features."""

    def __init__(self, device: str = "auto", threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        torch.backends.cudnn.deterministic = True  # one seed, one result
        if self.device.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
            torch.use_deterministic_algorithms(True, warn_only=True)
        self.built: dict[Hashable, Any] = {}

    def fetch(self, key: Hashable, build: Callable[[], T]) -> T:
        """What was built under `key`, building it on first use."""
        if key not in self.built:
            self.built[key] = build()
        value: T = self.built[key]
        return value

    def memory_budget(self, workers: int) -> int:
        """Bytes that this worker may keep activations in: of all memory, not of what is free now, so that it is the same each time."""
        if self.device.type == "cuda":
            return int(GPU_SHARE * torch.cuda.get_device_properties(self.device).total_memory)
        return int(CPU_SHARE * total_memory() / workers)

    def describe(self) -> dict[str, Any]:
        """Device and versions, JSON-able."""
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else "cpu",
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),  # its own class would make whoever unpickles it import torch
        }
