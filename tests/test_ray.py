"""A study on Ray: real clusters of simulated machines, of which some are killed, and a ledger that the trainers themselves write."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter

import mlflow
import psutil
import pytest

from hpsearch.runtime.trial_files import TrialFiles
from hpsearch.search.catalog import read_study
from hpsearch.search.store import open_storage, opened
from hpsearch.types import Status
from tests.support.commands import HPSEARCH, run_command
from tests.test_lost import begin, finish, ledger, whole
from tests.waiting import until

pytestmark = pytest.mark.process


STORE = 100 * 2**20
QUICK = {"initial_delay_ms": 0, "period_ms": 500, "timeout_ms": 1000, "failure_threshold": 3}  # to notice that a machine is lost


@pytest.fixture(scope="module")
def head():
    """A cluster whose head trains nothing."""
    from ray.cluster_utils import Cluster  # takes a second and more, in every test process that collects this file

    arguments = {
        "num_cpus": 0,
        "object_store_memory": STORE,
        "include_dashboard": False,
        "_system_config": {f"health_check_{k}": v for k, v in QUICK.items()},
    }
    cluster = Cluster(initialize_head=True, head_node_args=arguments)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def cluster(head):
    """The same; machines that the test adds are taken away."""
    yield head
    for node in list(head.worker_nodes):
        head.remove_node(node, allow_graceful=False)


def add(cluster, cpus=1, **more):
    return cluster.add_node(num_cpus=cpus, object_store_memory=STORE, **more)


@pytest.fixture
def place(tmp_path):
    """A folder with an empty storage."""
    open_storage(f"sqlite:///{tmp_path}/hpsearch.db", create=True).engine.dispose()
    return tmp_path


def free(cluster):
    """Processors that no actor holds, as Ray counts them."""
    code = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level='error')\n"
    code += "print(ray.available_resources().get('CPU', 0))"
    return float(run_command([sys.executable, "-c", code, cluster.address], check=True).stdout)


def heard(place):
    """Trials, epochs and times that the orchestrator was told of; their states have reached it."""
    path = place / "epochs"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def once(place):
    """No epoch of a trial was trained twice."""
    return set(Counter((trial, epoch) for trial, _, epoch, *_ in ledger(place, "epoch")).values()) == {1}


def test_a_machine_that_is_killed_costs_attempts_and_nothing_is_lost_or_doubled(cluster, place, new_store):
    nodes = {node.all_processes["raylet"][0].process.pid: node for node in [add(cluster) for _ in range(3)]}
    new_store(place)
    session = begin(place, ray={"address": cluster.address}, workers=3, trials=10, sleep=0.8, mlflow=True)
    until(lambda: len({row[4] for row in ledger(place, "epoch")}) == 3)
    lost = until(lambda: [trial for trial, epoch, at in heard(place) if epoch == 3 and time.time() - at < 0.3])[-1]
    pid = next(row[4] for row in ledger(place, "epoch") if row[0] == lost)
    raylet = psutil.Process(pid).parent()
    for process in [raylet, *raylet.children(recursive=True)]:  # at once: left to themselves, workers live on for a second
        process.kill()
    cluster.remove_node(nodes[raylet.pid], allow_graceful=False)
    out, err = session.communicate(timeout=120)
    assert session.returncode == 0, out + err
    found = whole(place, trials=10)
    assert [r.number for r in found if r.attempt > 1] == [lost]
    assert "while training" in out
    assert [first for trial, attempt, first, *_ in ledger(place, "start") if (trial, attempt) == (lost, 2)] == [4], "from its last state"
    assert once(place)
    client = mlflow.MlflowClient(f"sqlite:///{place}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    runs = [run for run in client.search_runs([experiment.experiment_id]) if "hpsearch.trial" in run.data.tags]
    mirrored = {int(run.data.tags["hpsearch.trial"]): run for run in runs}
    assert len(runs) == 10
    for r in found:
        assert mirrored[r.number].info.status == "FINISHED"
        history = client.get_metric_history(mirrored[r.number].info.run_id, "val_loss")
        assert sorted((m.step, m.value) for m in history) == [(row["epoch"], row["val_loss"]) for row in r.curve]


def test_a_machine_that_joins_is_used_and_a_study_waits_for_the_first(cluster, place):
    session = begin(place, ray={"address": cluster.address}, workers="auto", trials=12, sleep=0.3)
    time.sleep(1.0)
    assert ledger(place, "start") == []
    add(cluster)
    until(lambda: ledger(place, "epoch"))
    assert len({row[4] for row in ledger(place, "epoch")}) == 1
    add(cluster, cpus=2)
    out, err = session.communicate(timeout=120)
    assert session.returncode == 0, out + err
    whole(place, trials=12)
    assert len({row[4] for row in ledger(place, "epoch")}) == 3
    assert once(place)


def test_ctrl_c_keeps_every_epoch_and_frees_the_cluster(cluster, place):
    add(cluster, cpus=2)
    session = begin(place, ray={"address": cluster.address}, workers=2, sleep=0.3)
    until(lambda: len(ledger(place, "epoch")) >= 5)
    session.send_signal(signal.SIGINT)
    session.communicate(timeout=60)
    assert session.returncode == 130
    until(lambda: free(cluster) == 2.0, 30)
    finish(place, ray={"address": cluster.address}, workers=2)
    whole(place)
    assert once(place)


def test_a_killed_orchestrator_costs_what_had_not_reached_it(cluster, place):
    add(cluster, cpus=2)
    session = begin(place, ray={"address": cluster.address}, workers=2, sleep=0.3)
    until(lambda: len(ledger(place, "epoch")) >= 7)
    session.kill()
    session.communicate()
    until(lambda: free(cluster) == 2.0, 60)
    before = len(ledger(place, "epoch"))
    finish(place, ray={"address": cluster.address}, workers=2)
    whole(place)
    again = Counter((trial, epoch) for trial, _, epoch, *_ in ledger(place, "epoch"))
    assert before < sum(again.values()) <= 8 * 4 + 2, "more than an epoch of each worker was trained twice"


def test_two_orchestrators_share_a_cluster(cluster, tmp_path):
    add(cluster, cpus=2)
    places = [tmp_path / name for name in ("a", "b")]
    sessions = []
    for place in places:
        place.mkdir()
        open_storage(f"sqlite:///{place}/hpsearch.db", create=True).engine.dispose()
        sessions.append(begin(place, ray={"address": cluster.address}, workers=1, sleep=0.1))
    for session in sessions:
        out, err = session.communicate(timeout=120)
        assert session.returncode == 0, out + err
    for place in places:
        whole(place)
        assert once(place)
    used = [{row[4] for row in ledger(place, "epoch")} for place in places]
    assert not used[0] & used[1]


def test_workers_share_a_gpu_by_halves(cluster, place):
    add(cluster, cpus=4, num_gpus=1)
    finish(place, ray={"address": cluster.address, "gpus": 0.5}, workers="auto", sleep=0.1)
    whole(place)
    assert len({row[4] for row in ledger(place, "epoch")}) == 2


def run(where, *options, code=0, **more):
    """`hpsearch run` in a folder."""
    done = run_command([HPSEARCH, "run", *options], cwd=where, env=os.environ | more, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def study(where):
    with opened(f"sqlite:///{where}/hpsearch.db") as storage:
        return read_study(storage, "s")


@pytest.mark.parametrize(("machines", "search"), [(1, ("--sampler", "tpe")), (2, ("--sampler", "random", "--pruner", "none"))])
def test_a_study_is_the_same_on_ray_as_in_a_process_without_shared_files(cluster, tmp_path, machines, search):
    """Images and weights of the user's own, on machines with empty caches; where what is asked next hangs on nobody's speed."""
    for kind in ("process", "ray"):
        run_command([HPSEARCH, "example", kind], cwd=tmp_path, check=True)
    options = ("folder", "--name", "s", "--trials", "4", *search, "--no-tracking", "--set", "space.epochs={low: 2, high: 4}")
    run(tmp_path / "process", *options, "--workers", "1")
    caches = [tmp_path / f"cache-{machine}" for machine in range(machines)]
    for cache in caches:
        add(cluster, env_vars={"HPSEARCH_CACHE": str(cache)})
    run(tmp_path / "ray", *options, "--executor", "ray", "--ray-address", cluster.address, "--workers", str(machines))
    for cache in caches:
        assert len(list(cache.glob("images/*/images.u8"))) == 1, "it was brought there, once"
        assert not list(cache.glob("images/*.tmp"))
    here, there = study(tmp_path / "process"), study(tmp_path / "ray")
    assert [told(r) for r in there.records] == [told(r) for r in here.records]
    assert tensors(tmp_path / "ray", there) == tensors(tmp_path / "process", here)
    for key in ("data_digest", "weights_digest", "class_counts"):
        assert there.facts[key] == here.facts[key]


def told(r):
    """A trial without what depends on the clock."""
    return r.number, r.params, r.status, r.val_loss, r.best_epoch, bare(r.curve)


def bare(curve):
    """A curve without what depends on the clock."""
    return [{key: value for key, value in row.items() if key not in ("seconds", "images_per_second")} for row in curve]


def tensors(folder, stored):
    """A digest of the winner's weights."""
    from safetensors import safe_open

    best = min((r for r in stored.records if r.status is Status.COMPLETE), key=lambda r: (r.val_loss, r.number))
    weights = TrialFiles(folder / "hpsearch-runs" / "s").find(best.checkpoint)
    with safe_open(weights, "pt") as file:
        parts = [(name, file.get_tensor(name).numpy().tobytes()) for name in sorted(file.keys())]
    return best.number, hashlib.blake2b(repr(parts).encode()).hexdigest()


def test_ray_is_started_and_ended_where_no_address_is_given(tmp_path):
    """In a folder with modules that no worker is to import, though Ray would let it."""
    for name in ("random", "torch", "numpy", "hpsearch"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'sang')!r}, 'a').write({name!r} + ' ')\n")
    run(tmp_path, "--name", "s", "--trials", "2", "--no-tracking", "--executor", "ray", "--workers", "2", "--set", "space.epochs=1")
    assert [r.status for r in study(tmp_path).records] == [Status.COMPLETE] * 2
    assert not (tmp_path / "sang").exists(), (tmp_path / "sang").read_text()


# ---------------------------------------------------------------- what cannot be


def test_an_address_without_ray_is_told_within_seconds(tmp_path):
    with socket.socket() as silent, socket.socket() as closed:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        closed.bind(("127.0.0.1", 0))
        for port, reason in ((silent.getsockname()[1], "timed out"), (closed.getsockname()[1], "refused")):
            text = run(tmp_path, "--executor", "ray", "--ray-address", f"127.0.0.1:{port}", code=1)
            assert f"there is no Ray at 127.0.0.1:{port}" in text
            assert reason in text


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--executor", "ray", "--ray-address", "ray://127.0.0.1:10001"), 2, "Ray Client"),
        (("--executor", "ray", "--ray-address", "somewhere"), 2, "HOST:PORT"),
        (("--ray-address", "auto"), 2, "--executor ray"),
        (("--executor", "rey"), 2, "executor"),
        (("--executor", "ray", "--set", "gpus_per_worker=1.5"), 2, "share of one GPU"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_made(tmp_path, options, code, words):
    assert words in run(tmp_path, *options, code=code)
    assert list(tmp_path.iterdir()) == []


def test_without_ray_it_is_said_what_to_install(tmp_path):
    code = "import sys; sys.modules['ray'] = None; import hpsearch.cli; hpsearch.cli.main(['run', '--executor', 'ray'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'hpsearch[ray]'" in done.stderr
