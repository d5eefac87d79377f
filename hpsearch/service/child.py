"""One study of the queue in a process of its own: claims its row, runs the verb that `hpsearch run` calls, says how it ended.

python -m hpsearch.service.child NUMBER SLOT SLOTS, in the server's working folder. Storage and MLflow come by environment, since a
command line can be read by everybody.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from hpsearch import actions, comparing, places
from hpsearch.devices import seeing, visible
from hpsearch.errors import FixInput, HpsearchError, Interrupted, WaitOrStop
from hpsearch.machine import born
from hpsearch.places import Place
from hpsearch.race import RaceLines
from hpsearch.search.queue import COMPARE, Entry, Queue
from hpsearch.spec import parse_spec
from hpsearch.terminal import Lines, SafeConsole

AGAIN = 10.0  # seconds after which a study is tried again that somebody else runs
NICE = 5  # so that a busy machine still answers requests
UNTRACKED = "HPSEARCH_NO_TRACKING"


def main(number: int, slot: int, slots: int) -> None:
    """Run the study of that row, if it is still to be run."""
    with suppress(OSError):
        os.nice(NICE)
    confine(slot, slots)
    where = places.place(Path.cwd(), track=not os.environ.get(UNTRACKED))
    queue = Queue(where.storage)
    if not queue.claim(number, os.getpid(), born(os.getpid()), slot):
        return
    entry = queue.entry(number)
    if entry.damage:  # somebody changed it a moment ago
        queue.set_aside(entry)
        return
    state, note, wait, view = "failed", "it ended in a way that nobody foresaw: see its log", 0.0, Lines(SafeConsole(width=160))
    try:
        if entry.compares:
            state, note = "done", compare(entry, where)
        else:
            spec = parse_spec({**entry.values, "name": entry.study, "trials": entry.trials})
            summary = actions.run(spec, where, [view], view.say)
            state, note = ("done", summary.reason) if summary.best else ("failed", "no trial is complete: see its trials and its log")
    except Interrupted:
        state, note = "interrupted", ""
    except WaitOrStop as error:
        state, note, wait = "queued", str(error), AGAIN
    except HpsearchError as error:
        state, note = "failed", str(error)
        view.say(note)
    finally:
        queue.conclude(number, os.getpid(), state, note, entry.trials, wait)
        queue.close()


def compare(entry: Entry, where: Place) -> str:
    """Run a comparison; what can be said of it."""
    values, view = dict(entry.values), RaceLines(SafeConsole(width=160))
    wanted = values.pop(COMPARE)
    try:
        asked = comparing.contest_of({**values, "name": entry.study}, **wanted)
    except (TypeError, ValueError) as error:
        raise FixInput(f"what the queue holds of the comparison '{entry.study}' cannot be used ({error}): submit it again") from None
    return " ".join(comparing.compare(asked, where, [view], view.say).verdict[1:])  # the first says what was compared


def confine(slot: int, slots: int) -> None:
    """Leave this process its part of the machine: every n-th core, and one GPU in turn."""
    if slots > 1 and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[slot % len(cores) :: slots] or cores)
    gpus = visible()
    if len(gpus) > 1 and slots > 1:
        os.environ.update(seeing(gpus[slot % len(gpus)]))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
