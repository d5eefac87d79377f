"""The devices that torch finds on this machine."""

from __future__ import annotations

from typing import NamedTuple

import torch

from hpsearch.finetune.context import bf16_pays


class Device(NamedTuple):
    """One of them; bytes of memory are those of a GPU."""

    name: str
    precision: str  # that `precision: auto` comes to
    free: int = 0
    total: int = 0


def devices() -> list[Device]:
    """Every GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return [Device(f"CPU ({torch.backends.cpu.get_cpu_capability()})", "bf16" if bf16_pays(False) else "fp32")]
    found = []
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        found.append(Device(torch.cuda.get_device_name(i), "bf16" if bf16_pays(True) else "fp32", free, total))
    return found
