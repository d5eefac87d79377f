"""A process that cannot start says so in one sentence with its remedy, without a traceback."""

import multiprocessing
import subprocess
import sys

import pytest

from hpsearch.errors import FixSetup
from hpsearch.executors.aside import answer
from hpsearch.executors.worker import KernelRef, ready
from tests.support.commands import HPSEARCH


def short_of_memory(*_):
    raise MemoryError


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A module whose libraries cannot be loaded."""
    (tmp_path / "broken_libraries.py").write_text("raise ImportError('failed to map segment\\nsecond line')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("hpsearch.executors.aside.ignore_signals", lambda: None)
    return "broken_libraries:make"


@pytest.mark.parametrize("target", ["broken_libraries:make", f"{__name__}:short_of_memory"])
def test_what_is_called_aside_ends_in_a_sentence(broken, target):
    ours, theirs = multiprocessing.Pipe(duplex=False)
    answer(theirs, target, {}, "preparing the study", {})
    kind, error = ours.recv()
    assert (kind, type(error)) == ("error", FixSetup)
    assert str(error).startswith("preparing the study failed")
    assert "memory" in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize("target", ["broken_libraries:make", f"{__name__}:short_of_memory"])
def test_a_worker_that_cannot_start_ends_in_a_sentence(broken, target):
    kernel, message = ready(KernelRef(target, {}), 3)
    assert kernel is None
    assert "memory" in str(message.error)
    assert "\n" not in str(message.error)


@pytest.mark.process
def test_too_little_address_space_for_torch_is_told_without_a_traceback(tmp_path):
    command = f"ulimit -v 1500000; exec {sys.executable} {HPSEARCH} run --trials 1 --workers 1 --no-tracking"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "is there enough memory (`ulimit -v`" in done.stderr
