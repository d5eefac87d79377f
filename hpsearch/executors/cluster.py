"""Ray itself: loaded quietly, connected to or started, and what it says of lost workers in a few words."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

from hpsearch.devices import crew
from hpsearch.errors import FixInput, FixSetup
from hpsearch.machine import shielded, usable_cores

STORE = 2**30  # bytes of object store of a Ray that is started here: nothing but states and weights goes through it
CONNECT = 5.0  # seconds for an address to answer
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # with which a client of gRPC begins
MISSING = "--executor ray needs Ray, which is not installed: pip install 'hpsearch[ray]'"


def load_ray() -> Any:
    """The module, with its usage statistics off and its own messages kept from the terminal; FixSetup where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray._private.worker as inner
    except ImportError:
        raise FixSetup(MISSING) from None
    # It prints every lost worker on standard output, where --json prints JSON; the executor tells of them itself.
    inner.print_to_stdstream = silent
    logging.getLogger("ray").setLevel(logging.ERROR)
    return ray


def silent(*said: Any, **more: Any) -> None:
    """Print nothing."""
    del said, more


def connect(ray: Any, address: str | None, workers: int | str, threads: int) -> bool:
    """Connect to the Ray at `address`, or start one here; whether it is now this process's to leave. FixSetup when there is none."""
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"include_dashboard": False} if address is None else {}
    quiet["job_config"] = own_code_only()
    quiet |= {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    if address is None:
        crew("cpu", workers, threads)  # refuses more threads than cores
        with shielded():  # a signal to the whole group is the orchestrator's to answer
            ray.init("local", num_cpus=usable_cores(), object_store_memory=STORE, **quiet)
        return True
    if address.startswith("ray://"):
        raise FixInput(
            f"--ray-address {address} is that of Ray Client, through which workers' messages cannot pass: run hpsearch on a machine "
            "of the cluster (`ray job submit -- hpsearch run ...`, or a shell on its head) with --ray-address auto"
        )
    check_address(address)
    try:
        ray.init(address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = "is it up (`ray start --head`), of this version of Ray, and does it want a token (RAY_AUTH_MODE=token)?"
        raise FixSetup(f"the Ray at {address} cannot be connected to ({line}): {remedy}") from None
    return True


def own_code_only() -> Any:
    """A job whose workers import installed packages alone; Ray would put the working folder on their import path."""
    from ray.job_config import JobConfig

    class OwnCodeOnly(JobConfig):
        @property
        def _py_driver_sys_path(self) -> list[str]:
            return []

        @_py_driver_sys_path.setter
        def _py_driver_sys_path(self, entries: list[str]) -> None:
            del entries

    return OwnCodeOnly()


def check_address(address: str) -> None:
    """FixSetup, at once, for an address at which nothing answers as Ray does; Ray's own way takes 40 s to say so."""
    host, _, port = address.rpartition(":")
    if address in ("auto", "local") or os.environ.get("RAY_USE_TLS") == "1":
        return
    try:
        if not host or not port.isdigit():
            raise FixInput(f"--ray-address {address} is no HOST:PORT: `ray start --head` prints it (the port is 6379 unless chosen)")
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT) as there:
            there.settimeout(CONNECT)
            there.sendall(PREFACE)
            answer = there.recv(9)
        reason = "" if answer[3:4] == b"\x04" else "what listens there is not Ray"
    except (OSError, OverflowError) as error:
        reason = str(error)
    if reason:
        raise FixSetup(f"there is no Ray at {address} ({reason}): is it up, and is this the address that `ray start --head` printed?")


def cause_of(error: Exception) -> str:
    """What happened to a worker, in a few words."""
    text = str(error)
    if "node" in text.lower() and ("died" in text or "unreachable" in text or "dead" in text) and "Worker exit type" not in text:
        return "was lost with its machine"
    if "Worker exit type" in text:
        return f"died ({text.partition('Worker exit detail:')[2].strip().partition('. Some common')[0][:200]})"
    return f"was lost ({(text.strip().splitlines() or [type(error).__name__])[-1][:300]})"
