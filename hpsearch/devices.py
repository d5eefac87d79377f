"""Which devices a session trains on, and with how many workers; found without loading torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpsearch.errors import FixInput
from hpsearch.machine import usable_cores

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Crew:
    """The workers of a session: of each, what its environment says of devices, and the GPU that this leaves it, "" for none."""

    places: tuple[Mapping[str, str], ...]
    gpus: tuple[str, ...]

    @property
    def workers(self) -> int:
        """How many."""
        return len(self.places)

    @property
    def sharing(self) -> int:
        """The most workers that share one device; without GPUs all share the machine."""
        return max(Counter(self.gpus).values())

    def text(self, threads: int) -> str:
        """As a person reads it."""
        words = f"{self.workers} worker{'s' * (self.workers > 1)} ({threads} thread{'s' * (threads > 1)} each)"
        named = list(dict.fromkeys(filter(None, self.gpus)))
        return f"{words} on GPU{'s' * (len(named) > 1)} {', '.join(named)}" if named else words


def visible() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get(VISIBLE)
    if given is not None:
        names = [name.strip() for name in given.split(",")]
        hidden = next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))  # CUDA stops there
        return tuple(names[:hidden])
    count = sum(1 for _ in Path("/dev").glob("nvidia[0-9]*"))
    return tuple(map(str, range(count or int(Path("/dev/dxg").exists()))))  # dxg: the GPU of a Windows host


def seeing(gpu: str) -> dict[str, str]:
    """What makes a process see one GPU alone, in its environment."""
    order = {} if VISIBLE in os.environ else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # as nvidia-smi numbers them; else as the user does
    return {VISIBLE: gpu, **order}


def crew(devices: str | tuple[int, ...], workers: int | str, threads: int, cores: int | None = None) -> Crew:
    """The workers, each of `threads` threads, dealt over the devices. "auto" is one for each GPU, or one per core without.

    Raises FixInput for devices that are not there, and for more threads than cores: two processes then spin at each other's barriers.
    """
    cores, there = cores or usable_cores(), visible()
    chosen: tuple[str, ...] = there if devices in ("auto", "all") else ()
    if devices == "all" and not there:
        raise FixInput(f"devices: all, and there is no GPU here: leave it out, or look at the driver and at {VISIBLE}")
    if isinstance(devices, tuple):
        if lacking := [number for number in devices if number >= len(there)]:
            known = (
                f"there {'are' if len(there) > 1 else 'is'} {', '.join(map(str, range(len(there))))}" if there else "there is no GPU here"
            )
            raise FixInput(f"no device {', '.join(map(str, lacking))}: {known} (as `nvidia-smi -L`, or {VISIBLE}, counts them)")
        chosen = tuple(there[number] for number in devices)
    most = max(1, cores // threads)
    count = workers if isinstance(workers, int) else min(len(chosen), most) if chosen else most
    if count < len(chosen) and devices not in ("auto", "cpu"):
        raise FixInput(
            f"{count} workers cannot work on {len(chosen)} devices: use --workers {len(chosen)}, a multiple of it, or fewer devices"
        )
    if count * threads > cores:
        raise FixInput(
            f"{count} workers of {threads} thread(s) need more than this machine's {cores} cores, which can make each of them "
            f"a hundred times slower: use --workers {most} or fewer"
        )
    if not chosen:
        return Crew(({VISIBLE: ""} if devices == "cpu" else {},) * count, ("",) * count)
    gpus = tuple(chosen[i % len(chosen)] for i in range(count))
    return Crew(tuple(seeing(gpu) for gpu in gpus), gpus)
