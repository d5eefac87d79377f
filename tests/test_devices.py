"""Which devices a session trains on; machines with several GPUs are told by CUDA_VISIBLE_DEVICES, which needs none."""

import os
from contextlib import closing

import pytest
import torch

from hpsearch.devices import VISIBLE, crew, visible
from hpsearch.errors import FixInput
from hpsearch.executors.process import ProcessExecutor
from hpsearch.executors.worker import KernelRef
from hpsearch.spec import parse_spec
from hpsearch.types import Job, Trial
from tests.contracts.test_executor import started, until
from tests.kernels import PARAMS
from tests.support.commands import HPSEARCH, run_command


@pytest.fixture
def four(monkeypatch):
    monkeypatch.setenv(VISIBLE, "4,5,GPU-6a,7")


@pytest.mark.parametrize(
    ("given", "found"), [("0,1", ("0", "1")), ("", ()), ("-1", ()), ("1,-1,2", ("1",)), (" 2 , 3 ", ("2", "3")), ("GPU-ab", ("GPU-ab",))]
)
def test_what_is_visible_is_read_as_cuda_reads_it(monkeypatch, given, found):
    monkeypatch.setenv(VISIBLE, given)
    assert visible() == found


@pytest.mark.parametrize(
    ("devices", "workers", "gpus"),
    [
        ("auto", "auto", ("4", "5", "GPU-6a", "7")),
        ("all", "auto", ("4", "5", "GPU-6a", "7")),
        ("auto", 1, ("4",)),
        ("auto", 6, ("4", "5", "GPU-6a", "7", "4", "5")),
        ((2, 0), "auto", ("GPU-6a", "4")),
        ((3,), 2, ("7", "7")),
        ("cpu", 3, ("", "", "")),
    ],
)
def test_workers_are_dealt_over_the_devices(four, devices, workers, gpus):
    found = crew(devices, workers, 1, cores=16)
    assert found.gpus == gpus
    assert [place[VISIBLE] for place in found.places] == list(gpus)


def test_auto_starts_no_more_workers_than_cores_and_says_on_what(four):
    found = crew("auto", "auto", 2, cores=6)
    assert found.text(2) == "3 workers (2 threads each) on GPUs 4, 5, GPU-6a"
    assert crew("auto", 6, 1, cores=8).sharing == 2


def test_gpus_are_counted_as_nvidia_smi_does_unless_the_user_counts(monkeypatch, tmp_path):
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setattr("hpsearch.devices.visible", lambda: ("0", "1"))
    assert crew((1,), "auto", 1, cores=4).places == ({VISIBLE: "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},)


@pytest.mark.parametrize(
    ("devices", "workers", "words"),
    [
        ((4, 9), "auto", "no device 4, 9: there are 0, 1, 2, 3"),
        ((0, 1), 1, "use --workers 2"),
        ("all", 3, "use --workers 4"),
        ("auto", 64, "use --workers 16"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(four, devices, workers, words):
    with pytest.raises(FixInput, match=words):
        crew(devices, workers, 1, cores=16)


def test_without_a_gpu_all_is_refused_and_auto_takes_the_cores(monkeypatch):
    monkeypatch.setenv(VISIBLE, "")
    with pytest.raises(FixInput, match="there is no GPU here"):
        crew("all", "auto", 1, cores=4)
    with pytest.raises(FixInput, match="there is no GPU here"):
        crew((0,), "auto", 1, cores=4)
    assert crew("auto", "auto", 2, cores=5).workers == 2


@pytest.mark.parametrize(("given", "means"), [("0,2", (0, 2)), (1, (1,)), ([3, 0], (3, 0)), ("ALL", "all"), ("cpu", "cpu")])
def test_a_study_names_devices_in_several_ways(given, means):
    assert parse_spec({"devices": given}).devices == means
    assert parse_spec(parse_spec({"devices": given}).resolved()).devices == means


@pytest.mark.parametrize("given", ["0,0", "gpu", "-1", True, [], 1.5, {"a": 1}, "0,,1"])
def test_a_study_that_names_no_devices_is_told_how(given):
    with pytest.raises(FixInput, match="numbers of GPUs such as 0,1"):
        parse_spec({"devices": given})


def seats(executor):
    """The device that each worker sees, by its own word."""
    return [m.facts.values["visible"] for m in sorted(started(executor), key=lambda m: m.worker) if m.facts]


@pytest.mark.process
def test_each_worker_sees_its_device_and_its_successor_the_same(four):
    with closing(ProcessExecutor(KernelRef("tests.kernels:curves", {"faults": {0: "kill"}}), crew((1, 2), "auto", 1, cores=4))) as executor:
        assert seats(executor) == ["5", "GPU-6a"]
        executor.submit(Job(0, (Trial(0, PARAMS),)))
        messages = until(executor, lambda ms: any(m.facts for m in ms))
        (born,) = [m for m in messages if m.facts]
        assert born.facts.values["visible"] == ["5", "GPU-6a"][born.worker]
    assert os.environ[VISIBLE] == "4,5,GPU-6a,7", "of this process nothing is changed"


def test_a_function_aside_sees_the_first_device(four):
    with closing(ProcessExecutor(None, crew((3, 1), "auto", 1, cores=4))) as executor:
        assert executor.aside("tests.kernels:visible", {}, lambda *said: None) == "7"


def test_jobs_go_where_their_activations_are_but_never_to_a_crowd(four):
    ref = KernelRef("tests.kernels:curves", {"slots": 3, "sleep": 30.0})
    with closing(ProcessExecutor(ref, crew((0, 1), "auto", 1, cores=4))) as executor:
        started(executor)

        def submit(number, frozen):
            executor.submit(Job(number, (Trial(number, {**PARAMS, "frozen_layers": frozen}),)))
            return next(i for i, seat in enumerate(executor.seats) if number in seat.jobs)

        first = submit(0, 2)
        assert submit(1, 2) == first, "one more, for the activations' sake"
        assert submit(2, 2) == 1 - first, "but not two more"
        assert submit(3, 5) == 1 - first
        assert submit(4, 5) == 1 - first
        assert submit(5, 7) == first
        assert executor.free() == 0


def hpsearch(folder, *arguments, **environment):
    return run_command([HPSEARCH, *arguments], cwd=folder, env=os.environ | environment)


@pytest.mark.process
def test_devices_that_are_not_there_or_cannot_be_used_are_refused_before_anything_is_made(tmp_path):
    done = hpsearch(tmp_path, "run", "--devices", "0,1", "--trials", "200", **{VISIBLE: ""})
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert "no device 0, 1: there is no GPU here" in done.stderr


@pytest.mark.process
@pytest.mark.skipif(torch.cuda.is_available(), reason="here the GPU can be used")
def test_a_gpu_that_torch_cannot_use_is_no_reason_to_train_on_the_cpu_unasked(tmp_path):
    done = hpsearch(tmp_path, "run", "--devices", "0", "--trials", "1", "--no-tracking", **{VISIBLE: "0"})
    assert done.returncode != 0
    assert "--devices cpu does without" in done.stderr
    done = hpsearch(tmp_path, "run", "--devices", "cpu", "--trials", "1", "--workers", "1", "--no-tracking", **{VISIBLE: "0"})
    assert done.returncode == 0, done.stderr
