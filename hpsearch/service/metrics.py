"""Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hpsearch.journal import EVENTS, MOST, read_events
from hpsearch.service.desk import Desk

SHOWN = 100  # studies that have lines of their own: the newest
Line = tuple[Mapping[str, object], float]


def metrics(desk: Desk) -> str:
    """Everything there is to measure."""
    studies = desk.reader.overview()
    devices = [({"device": device["name"], "index": number}, device) for number, device in enumerate(desk.devices())]
    single = [s for s in studies if not s["studies"]]  # the trials of a comparison are those of its studies
    trials = [({"study": s["study"], "state": fate}, n) for s in single[:SHOWN] for fate, n in s["counts"].items()]
    loops = {s["study"]: spent for s in studies if s["state"] == "running" and (spent := loop_of(desk, s["study"]))}
    return "".join(
        (
            family("hpsearch_queue_studies", "gauge", "Studies by state.", [({"state": s}, n) for s, n in desk.queue.counts().items()]),
            family("hpsearch_trials", "gauge", "Trials of the newest studies by state.", trials),
            family("hpsearch_device_busy_ratio", "gauge", "How busy a device is.", [(name, d["busy"]) for name, d in devices]),
            family("hpsearch_device_memory_bytes", "gauge", "Memory of a device.", [(name, d["memory"]) for name, d in devices]),
            family("hpsearch_device_memory_used_bytes", "gauge", "Of that, used.", [(name, d["memory_used"]) for name, d in devices]),
            family(
                "hpsearch_orchestration_seconds",
                "gauge",
                "What the loop of a running study has taken in its session, waiting for workers apart.",
                [({"study": name}, spent["seconds"]) for name, spent in loops.items()],
            ),
            family(
                "hpsearch_session_trials",
                "gauge",
                "Trials that ended in the session of a running study.",
                [({"study": name}, spent["trials"]) for name, spent in loops.items()],
            ),
            family("hpsearch_runner_ok", "gauge", "Whether the queue gets on.", [({}, 0 if desk.runner.problem else 1)]),
        )
    )


def loop_of(desk: Desk, study: str) -> Mapping[str, Any] | None:
    """What the loop of a running study told last of itself."""
    folder = desk.reader.folder(study)
    size = (folder / EVENTS).stat().st_size if (folder / EVENTS).exists() else 0
    found, _ = read_events(folder, max(0, size - MOST))
    return next((row for _, row in reversed(found) if row.get("event") == "loop"), None)


def family(name: str, kind: str, about: str, lines: Iterable[Line]) -> str:
    """One metric with its lines."""
    told = [f"{name}{labels(names)} {float(value):.10g}\n" for names, value in lines]
    return f"# HELP {name} {about}\n# TYPE {name} {kind}\n" + "".join(told)


def labels(names: Mapping[str, object]) -> str:
    """Labels with their values."""
    if not names:
        return ""
    return "{" + ",".join(f'{key}="{escaped(str(value))}"' for key, value in names.items()) + "}"


def escaped(text: str) -> str:
    """A label's value."""
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
