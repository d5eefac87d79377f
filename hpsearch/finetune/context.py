"""The device context: what outlives trials in a worker. The kernel takes every shared input through it."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from hpsearch.errors import FixSetup
from hpsearch.finetune.sharing import DeviceShare
from hpsearch.machine import total_memory

T = TypeVar("T")
CPU_SHARE, GPU_SHARE = 0.25, 0.4  # of all memory, for activations that trials share
MOST = 0.9  # of the free memory of a GPU, for trials: libraries want some, and it frays
GPU_SLOTS = 4  # trials at once on one GPU, where their memory allows it: eight gained nothing over four (studies/LOG.md)


class DeviceContext:
    """One device with what was built on it, by key: resident data, pretrained weights, cached features.

    `precision` is "fp32", "bf16" (autocast; weights and losses stay in float32) or "auto": bf16 where the device computes in it.
    """

    def __init__(self, device: str = "auto", threads: int = 1, precision: str = "auto") -> None:
        torch.set_num_threads(threads)
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.cuda = self.device.type == "cuda"
        if self.cuda and not torch.cuda.is_available():
            raise FixSetup("torch cannot use the GPU that was asked for: `hpsearch doctor` says more; --devices cpu does without")
        torch.backends.cudnn.deterministic = True  # one seed, one result
        if self.cuda:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        self.bf16 = precision == "bf16" or (precision == "auto" and bf16_pays(self.cuda))
        self.draws = Draws(self.device)
        self.built: dict[Hashable, Any] = {}
        self.keeping = False  # trials that are stopped are to go on later

    def fetch(self, key: Hashable, build: Callable[[], T]) -> T:
        """What was built under `key`, building it on first use."""
        if key not in self.built:
            self.built[key] = build()
        value: T = self.built[key]
        return value

    def autocast(self) -> torch.autocast:
        """Where networks compute: in bf16 or as they are. Casts are not kept: a captured step must make its own."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=not self.cuda)

    def memory_budget(self, workers: int) -> int:
        """Bytes that this worker may keep activations in: of all memory, not of what is free now, so that it is the same each time."""
        if self.cuda:
            return int(GPU_SHARE * torch.cuda.get_device_properties(self.device).total_memory / workers)
        return int(CPU_SHARE * total_memory() / workers)

    def slots(self, asked: int | str) -> int:
        """Trials that may train here at once; "auto": one on a CPU, where workers are processes."""
        return (GPU_SLOTS if self.cuda else 1) if asked == "auto" else int(asked)

    def allocated(self) -> int:
        """Bytes that tensors hold on a GPU; 0 on a CPU, which does not count them."""
        return torch.cuda.memory_allocated(self.device) if self.cuda else 0

    def free(self) -> int:
        """Bytes on a GPU that this process may still take, other processes considered; 0 on a CPU, where none are counted."""
        if not self.cuda:
            return 0
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(MOST * (torch.cuda.mem_get_info(self.device)[0] + unused))

    def share(self, study: str) -> DeviceShare:
        """What this process takes of its GPU beside other processes."""
        device, cuda = self.device, torch.cuda
        name = str(cuda.get_device_properties(device).uuid)
        return DeviceShare(name, study, lambda: cuda.mem_get_info(device), lambda: cuda.memory_reserved(device))

    def place(self) -> str:
        """The device's memory, as a person reads it."""
        if not self.cuda:
            return f"{total_memory() / 2**30:.0f} GiB of memory"
        free, total = torch.cuda.mem_get_info(self.device)
        return f"the {total / 2**30:.0f} GiB of the GPU ({free / 2**30:.1f} GiB)"

    def describe(self) -> dict[str, Any]:
        """Device and versions, JSON-able."""
        return {
            "device": torch.cuda.get_device_name(self.device) if self.cuda else "cpu",
            "precision": "bf16" if self.bf16 else "fp32",
            "threads": torch.get_num_threads(),
            "instructions": "" if self.cuda else torch.backends.cpu.get_cpu_capability(),  # others round otherwise
            "torch": str(torch.__version__),  # its own class would make whoever unpickles it import torch
        }


def bf16_pays(cuda: bool) -> bool:
    """Whether the device has instructions for bf16: Ampere and later, AVX512_BF16. Elsewhere it is emulated, and slower."""
    if cuda:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())


class Draws:
    """Random numbers by owner: whatever draws from torch's default generator, a network's own dropouts too, draws from the owner's.

    On CUDA each owner has a state of its own that captured graphs keep; on a CPU states are copied when the owner changes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.owner: int | None = None
        self.states: dict[int, Tensor] = {}
        self.generators: dict[int, torch.Generator] = {}
        self.default = torch.default_generator
        if device.type == "cuda":
            torch.cuda.init()
            self.default = torch.cuda.default_generators[device.index or torch.cuda.current_device()]

    def give(self, owner: int) -> None:
        """From now on the owner draws."""
        if owner == self.owner:
            return
        if self.device.type == "cuda":
            if owner not in self.generators:
                self.generators[owner] = torch.Generator(self.device)
            self.default.graphsafe_set_state(self.generators[owner].graphsafe_get_state())
        else:
            if self.owner is not None:
                self.states[self.owner] = self.default.get_state()
            if owner in self.states:
                self.default.set_state(self.states[owner])
        self.owner = owner

    def seed(self, seed: int) -> None:
        """Start the owner's sequence anew."""
        self.default.manual_seed(seed)

    @contextmanager
    def aside(self, seed: int) -> Iterator[None]:
        """Draw from another sequence for a while; what the owner draws next is not touched."""
        before = self.default.get_state()
        self.default.manual_seed(seed)
        try:
            yield
        finally:
            self.default.set_state(before)

    def state(self) -> Tensor:
        """Where the owner's sequence is."""
        return self.default.get_state()

    def back(self, state: Tensor) -> None:
        """Draw again from where the sequence was."""
        self.default.set_state(state)
