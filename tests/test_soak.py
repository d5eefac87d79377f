"""Five hundred trials in one session: what orchestrator, workers and mirror hold does not grow with their number."""

import re
import subprocess

import psutil
import pytest

from tests.support.commands import HPSEARCH

pytestmark = pytest.mark.process


ASKED = ["run", "--sampler", "random", "--trials", "500", "--workers", "1", "--set", "space.epochs=1", "--set", "space.frozen_layers=6"]
MIB = 2**20


def held(session):
    """Memory in MiB and open files of each process of a session, by what it is."""
    found = {}
    for process in [session, *session.children(recursive=True)]:
        command = " ".join(process.cmdline())
        kind = "mirror" if "spawn_main" in command else "worker" if "forkserver" in command else "orchestrator"
        if "resource_tracker" in command or (kind == "worker" and process.children()):  # the fork server itself does nothing
            continue
        found[kind] = (process.memory_info().rss / MIB, process.num_fds(), process.num_threads())
    return found


@pytest.mark.slow  # five hundred trials from a cold start: memory of a forked process is its parent's too
def test_five_hundred_trials_leave_memory_and_open_files_as_they_were(tmp_path):
    process = subprocess.Popen([HPSEARCH, *ASKED], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    session, seen = psutil.Process(process.pid), {}
    for line in process.stdout:
        at = re.match(r"\[(\d+)/500\]", line)
        if at and int(at[1]) in (150, 480):
            seen[int(at[1])] = held(session)
    process.stdout.close()
    assert process.wait() == 0
    early, late = seen[150], seen[480]
    assert set(early) == set(late) == {"orchestrator", "worker", "mirror"}
    for kind, (memory, files, threads) in late.items():
        assert memory - early[kind][0] < 16, f"{kind} grew from {early[kind][0]:.0f} to {memory:.0f} MiB in 330 trials"
        assert files <= early[kind][1] + 2, f"{kind} has {files} open files, and had {early[kind][1]}"
        assert threads <= early[kind][2] + 1
