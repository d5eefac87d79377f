"""The HTTP API of a real server with real studies behind it."""

import http.client
import io
import json
import re
import time
import zipfile
from pathlib import Path

import pytest
from serving import LONG, SHORT

from hpsearch import Client
from hpsearch.errors import ChooseAnotherName, FixInput, FixSetup, NotFound, WaitOrStop
from tests.support.commands import HPSEARCH, run_command


@pytest.fixture(scope="module")
def done(server):
    """Two studies that have ended, of different samplers."""
    server.submit("done")
    server.submit("other", {**SHORT, "sampler": "random"})
    server.until("other", "done")
    return server.until("done", "done")


@pytest.fixture
def long(server):
    """A study in the middle of its first trials; cancelled afterwards."""
    name = f"long-{time.monotonic_ns()}"
    server.submit(name, LONG)
    server.until(name, "running")
    wait_for_epoch(server, name)
    yield name
    server.ask("POST", f"/api/studies/{name}/cancel")
    server.until(name, "cancelled", "done")


def wait_for_epoch(server, name):
    for kind, _, _ in events(server, name):
        if kind == "epoch":
            return


def events(server, name, headers=None, after=0):
    """(event, id, data) as they come, by a reader of our own."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.request("GET", f"/api/studies/{name}/events?after={after}", headers=headers or {})
    answer = connection.getresponse()
    assert answer.getheader("content-type").startswith("text/event-stream")
    found = {}
    try:
        for line in answer:
            text = line.decode().rstrip("\n")
            if text:
                key, _, value = text.partition(": ")
                found[key] = value
            elif "data" in found:
                yield found["event"], found.get("id"), json.loads(found["data"])
                found = {}
            else:
                found = {}
    finally:
        connection.close()


@pytest.mark.process
def test_a_study_is_submitted_and_runs_to_its_end(server, done):
    assert done["ended"] == done["trials"] == 4
    assert done["note"] == "budget"
    assert done["best"]["score"] == done["best_score"] <= done["default_score"]
    assert done["gain"] == pytest.approx(done["default_score"] - done["best_score"])
    assert done["spec"]["sampler"] == "tpe"
    log = server.ask("GET", "/api/studies/done/log")[1]
    assert "[4/4]" in log
    assert (server.folder / "hpsearch-runs" / "done" / "report.html").exists()


def test_wrong_studies_are_refused_in_the_words_of_the_command_line(server):
    for body, said in (
        ({"study": {"trails": 3}}, "unknown key 'trails': did you mean 'trials'?"),
        ({"yaml": "sampler: tqe"}, "unknown sampler 'tqe': did you mean 'tpe'?"),
        ({"yaml": "- 1"}, "must be a mapping"),
        ({"study": {}, "yaml": "trials: 1"}, "one of them"),
        ({}, "one of them"),
        ({"study": {"data": "CIFAR10"}}, "name a model for CIFAR10"),
        ({"study": {"name": "../x"}}, "study name '../x' cannot be used"),
        ({"study": {}, "urgent": True}, "urgent"),
    ):
        status, headers, text = server.raw("POST", "/api/studies", body)
        problem = json.loads(text)
        assert (status, headers["content-type"]) == (422, "application/problem+json")
        assert said in problem["detail"], problem
        assert set(problem) == {"type", "title", "status", "detail"}
        assert problem["type"] == "urn:hpsearch:problem:fix-input"
    assert server.raw("POST", "/api/studies", b"{")[0] == 422
    assert server.ask("GET", "/api/studies/nope")[0] == 404
    assert server.ask("GET", "/api/nothing")[0] == 404
    assert server.ask("PUT", "/api/studies")[0] == 405


def test_the_same_key_makes_one_study(server):
    body, key = {"study": {**SHORT, "name": "keyed"}}, {"idempotency-key": "k1"}
    first, second = (server.ask("POST", "/api/studies", body, key) for _ in range(2))
    assert (first[0], second[0]) == (201, 200)
    assert first[1]["submitted"] == second[1]["submitted"]
    other = {"study": {**SHORT, "name": "keyed-2"}}
    assert server.ask("POST", "/api/studies", other, key)[0] == 422
    assert server.ask("POST", "/api/studies", body)[0] == 409
    server.ask("POST", "/api/studies/keyed/cancel")
    server.until("keyed", "cancelled", "done")


def test_trials_in_pages_sorted_and_filtered(server, done):
    everything = server.ask("GET", "/api/studies/done/trials?sort=score&order=desc")[1]
    scores = [trial["score"] for trial in everything["trials"]]
    assert everything["total"] == 4
    assert scores == sorted(scores, reverse=True)
    page = server.ask("GET", "/api/studies/done/trials?sort=score&order=desc&offset=1&limit=2")[1]
    assert [trial["score"] for trial in page["trials"]] == scores[1:3]
    assert server.ask("GET", "/api/studies/done/trials?status=FAILED")[1] == {"total": 0, "offset": 0, "trials": []}
    assert server.ask("GET", "/api/studies/done/trials?limit=0")[0] == 422
    one = server.ask("GET", "/api/studies/done/trials/0")[1]
    assert one["diagnosis"]
    assert len(one["curve"]) == 3
    assert server.ask("GET", "/api/studies/done/trials/99")[0] == 404


def test_events_from_the_beginning_and_from_where_a_reader_left(server, done):
    found = list(events(server, "done"))
    kinds = [kind for kind, _, _ in found]
    assert kinds[0] == "session"
    assert kinds.count("ended") == 4
    assert kinds[-1] == "state"
    assert found[-1][2]["state"] == "done"
    place = found[5][1]
    assert list(events(server, "done", {"last-event-id": place})) == found[6:]
    assert list(events(server, "done", after=place)) == found[6:]
    assert server.ask("GET", "/api/studies/nope/events")[0] == 404


def test_a_trial_is_stopped_and_the_study_goes_on(server, long):
    assert server.ask("POST", f"/api/studies/{long}/trials/0/stop")[0] == 202
    for kind, _, data in events(server, long):
        if kind == "ended":
            assert (data["trial"], data["status"], data["error"]) == (0, "PRUNED", "stopped on request")
            break
    assert server.study(long)["state"] == "running"
    until(lambda: server.ask("POST", f"/api/studies/{long}/trials/0/stop")[0] == 423)
    assert server.ask("POST", f"/api/studies/{long}/trials/77/stop")[0] == 404


def until(condition, seconds=30):
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.1)


def test_pause_resume_and_more_trials(server, long):
    assert server.ask("POST", f"/api/studies/{long}/pause")[0] == 202
    row = server.until(long, "paused")
    assert row["counts"].get("running", 0) == 0
    assert row["counts"]["waiting"] >= 1
    assert server.ask("PATCH", f"/api/studies/{long}", {"trials": 6})[1]["trials"] == 6
    assert server.ask("POST", f"/api/studies/{long}/resume")[0] == 202
    server.until(long, "running")
    assert server.ask("PATCH", f"/api/studies/{long}", {"trials": 8})[1]["trials"] == 8
    for kind, _, data in events(server, long):
        if kind == "budget" and data["budget"] == 8:
            break
    assert server.ask("PATCH", f"/api/studies/{long}", {"trials": 3})[0] == 422


def test_what_comes_of_a_study_is_downloaded(server, done):
    status, headers, page = server.raw("GET", "/api/studies/done/report")
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/html")
    assert headers["content-security-policy"].startswith("sandbox")
    assert page == (server.folder / "hpsearch-runs" / "done" / "report.html").read_bytes()
    status, headers, weights = server.raw("GET", "/api/studies/done/model")
    assert status == 200
    assert weights == next((server.folder / "hpsearch-runs" / "done").glob("*.safetensors")).read_bytes()
    status, headers, packed = server.raw("GET", "/api/studies/done/export")
    assert (status, headers["content-type"]) == (200, "application/zip")
    names = zipfile.ZipFile(io.BytesIO(packed)).namelist()
    assert {"done/model.safetensors", "done/predict.py"} <= set(names), names


def test_studies_are_compared(server, done):
    status, found = server.ask("GET", "/api/compare?study=done&study=other")
    assert status == 200, found
    assert set(found["studies"]) == {"done", "other"}
    assert server.ask("GET", "/api/compare?study=done")[0] == 422
    assert server.ask("GET", "/api/compare?study=done&study=nope")[0] == 404


DUEL = {"samplers": ["random", "tpe"], "repeats": 2, "initial": 2}


@pytest.fixture(scope="module")
def duel(server, done):
    """A comparison of samplers that was paused in the middle and has ended."""
    server.submit("duel", {**SHORT, "trials": 3, "pruner": "none"}, compare=DUEL)
    first = next(event for kind, _, event in events(server, "duel") if kind == "ended")
    assert first["study"] == "duel-random-r1"
    assert server.ask("POST", "/api/studies/duel/pause")[0] == 202
    paused = server.until("duel", "paused", "done")
    assert paused["state"] == "paused", "it was over too soon"
    assert 0 < paused["ended"] < 12
    assert server.ask("POST", "/api/studies/duel/resume")[0] == 202
    return server.until("duel", "done")


def test_samplers_are_compared_through_the_queue(server, duel):
    names = ["duel-random-r1", "duel-random-r2", "duel-tpe-r1", "duel-tpe-r2"]
    assert sorted(duel["studies"]) == names
    assert (duel["trials"], duel["ended"], duel["counts"]) == (12, 12, {"complete": 12})
    found = Client(server.address).compare("duel")
    assert sorted(found["studies"]) == names
    assert duel["note"] == " ".join(found["verdict"][1:])
    assert duel["best_score"] == min(server.study(name)["best_score"] for name in names)
    assert {row["study"] for row in server.ask("GET", "/api/studies")[1]["studies"]} >= {"duel", *names}
    told = [(event["study"], event["trial"]) for kind, _, event in events(server, "duel") if kind == "ended"]
    assert sorted(set(told)) == [(name, trial) for name in names for trial in range(3)]
    own = [event["trial"] for kind, _, event in events(server, "duel-tpe-r2") if kind == "ended"]
    assert sorted(set(own)) == [0, 1, 2]


def test_a_comparison_has_a_report_and_no_trials_of_its_own(server, duel):
    status, headers, page = server.raw("GET", "/api/studies/duel/report")
    assert (status, page) == (200, (server.folder / "hpsearch-runs" / "duel" / "comparison.html").read_bytes())
    assert headers["content-security-policy"].startswith("sandbox")
    status, problem = server.ask("GET", "/api/studies/duel/trials")
    assert (status, "its trials are those of its studies, duel-random-r1" in problem["detail"]) == (404, True)
    assert server.ask("GET", "/api/studies/duel/model")[0] == 404
    for taken, compare in (("done", DUEL), ("duel", DUEL | {"samplers": ["random", "gp"]}), ("duel", DUEL | {"repeats": 1})):
        status, problem = server.ask("POST", "/api/studies", {"study": {**SHORT, "name": taken}, "compare": compare})
        assert (status, "choose another --name" in problem["detail"]) == (409, True), problem
    status, problem = server.ask("PATCH", "/api/studies/duel", {"trials": 80})
    assert (status, "a comparison" in problem["detail"]) == (422, True)
    assert server.ask("PATCH", "/api/studies/duel", {"priority": 3})[1]["priority"] == 3
    text = server.ask("GET", "/api/metrics")[1]
    assert 'hpsearch_trials{study="duel-tpe-r2",state="complete"} 3' in text
    assert 'study="duel",' not in text, "its trials would count twice"


@pytest.mark.parametrize(
    ("compare", "words"),
    [
        ({"samplers": ["tpe"]}, "at least 2"),
        ({"samplers": ["tpe", "tqe"]}, "did you mean 'tpe'"),
        ({"samplers": ["tpe", "tpe"]}, "at least two samplers"),
        ({"samplers": ["tpe", "gp"], "initial": 9}, "more than the 4 trials"),
        ({"repeats": 0}, "greater than or equal to 1"),
        ({"seconds": -1}, "greater than 0"),
        ({"repeats": 1000, "samplers": ["tpe", "gp"], "initial": 1}, "lower `repeats`"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(server, compare, words):
    study = SHORT | ({"trials": 1_000_000} if compare.get("repeats") == 1000 else {})
    status, problem = server.ask("POST", "/api/studies", {"study": study, "compare": compare})
    assert (status, words in problem["detail"]) == (422, True), problem
    assert problem["type"] == "urn:hpsearch:problem:fix-input"


def test_health_devices_and_metrics(server, done):
    health = server.ask("GET", "/api/health")[1]
    assert health["status"] == "ok"
    assert health["queue"]["done"] >= 2
    assert server.ask("GET", "/api/devices")[1][0]["memory"] > 0
    text = server.ask("GET", "/api/metrics")[1]
    line = re.compile(r'(# (HELP|TYPE) \w+ .+|\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? \S+)')
    assert all(line.fullmatch(row) for row in text.splitlines())
    assert 'hpsearch_trials{study="done",state="complete"} 4' in text
    assert "hpsearch_device_memory_bytes" in text


def test_the_loops_own_time_is_measured(server, long):
    until(lambda: f'hpsearch_orchestration_seconds{{study="{long}"}}' in server.ask("GET", "/api/metrics")[1])


@pytest.mark.process
def test_a_study_of_the_command_line_is_shown_and_not_steered(server, done):
    command = [HPSEARCH, "run", "--trials", "2", "--no-tracking", "--name", "by-hand", "--set", "space.epochs=2"]
    run_command(command, cwd=server.folder, check=True)
    until(lambda: server.study("by-hand")["ended"] == 2)
    assert server.study("by-hand")["state"] == "stored"
    assert any(row["study"] == "by-hand" for row in server.ask("GET", "/api/studies")[1]["studies"])
    status, problem = server.ask("POST", "/api/studies/by-hand/pause")
    assert (status, "not submitted to this server" in problem["detail"]) == (423, True)
    assert [kind for kind, _, _ in events(server, "by-hand")][-1] == "state"


# ---------------------------------------------------------------- the client


def test_the_client_has_the_same_verbs_and_errors(server, done, tmp_path):
    client = Client(server.address)
    row = client.run({**SHORT, "name": "by-client"}, key="once")
    assert client.run({**SHORT, "name": "by-client"}, key="once")["submitted"] == row["submitted"]
    with pytest.raises(ChooseAnotherName):
        client.run({**SHORT, "name": "by-client"})
    kinds = [event["event"] for event in client.events("by-client")]
    assert kinds.count("ended") == 4
    assert client.wait("by-client")["state"] == "done"
    assert client.show("by-client")["ended"] == 4
    assert "by-client" in [row["study"] for row in client.list()]
    assert client.trials("by-client", limit=1)["total"] == 4
    assert client.trial("by-client", 0)["number"] == 0
    assert client.extend("by-client", 5)["trials"] == 5
    assert client.wait("by-client")["ended"] == 5
    assert client.report("by-client", tmp_path / "r.html").stat().st_size > 1_000_000
    assert client.model("by-client", tmp_path / "w").stat().st_size > 1000
    assert client.health()["status"] == "ok"
    with pytest.raises(FixInput, match="did you mean 'trials'"):
        client.run({"trails": 4})
    with pytest.raises(NotFound):
        client.show("nope")
    with pytest.raises(WaitOrStop):
        client.pause("by-client")
    with pytest.raises(FixSetup, match="no server answers"):
        Client("http://127.0.0.1:9").list()


@pytest.mark.process
def test_the_command_line_on_a_server(server, done, tmp_path):
    def command(*arguments):
        return run_command([HPSEARCH, "--server", server.address, *arguments], cwd=tmp_path)

    ran = command("run", "--name", "by-cli", "--trials", "3", "--set", "space.epochs=2")
    assert ran.returncode == 0, ran.stderr
    assert sum(" of 3 " in line for line in ran.stdout.splitlines()) == 3
    assert "Best: trial" in ran.stdout
    assert json.loads(command("show", "by-cli", "--json").stdout)["ended"] == 3
    assert "by-cli" in command("list").stdout
    assert command("report", "by-cli").returncode == 0
    assert (tmp_path / "by-cli.html").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["by-cli.html"], "nothing ran here"
    assert json.loads(command("run", "--name", "by-cli-2", "--detach", "--json").stdout)["state"] == "queued"
    assert command("cancel", "by-cli-2").returncode == 0
    asked = ["--samplers", "random,tpe", "--repeats", "1", "--initial", "1", "--trials", "2", "--set", "space.epochs=2"]
    ran = command("compare", *asked, "--name", "race")
    assert ran.returncode == 0, ran.stderr
    assert sum(line.startswith("race-") for line in ran.stdout.splitlines()) == 4
    assert "2 samplers, 1 repeat each" in ran.stdout
    assert json.loads(command("compare", "race", "--json").stdout)["comparison"] == "race"
    assert "race-tpe-r1" in command("show", "race").stdout
    assert json.loads(command("compare", "race-random-r1", "race-tpe-r1", "--json").stdout)["studies"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["by-cli.html"], "nothing ran here"
    refused = command("best", "by-cli")
    assert (refused.returncode, "is not for a server" in refused.stderr) == (2, True)
    assert command("run", "--sampler", "tqe").returncode == 2


@pytest.mark.process
def test_the_notebook_runs(server, done, tmp_path, monkeypatch, capsys):
    notebook = json.loads((Path(__file__).parents[2] / "docs" / "client.ipynb").read_text())
    monkeypatch.setenv("HPSEARCH_SERVER", server.address)
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    said = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("trial-") for line in said) == 4
    assert said[-1] == "6"
    assert (tmp_path / "notebook.html").exists()


BODIES = {
    "nested without end": b'{"study": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    "nested 500 deep": b'{"study": ' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}",
    "lists 500 deep": b'{"study": {"space": ' + b"[" * 500 + b"]" * 500 + b"}}",
    "a number of 5,000 digits": b'{"study": {"trials": ' + b"9" * 5000 + b"}}",
    "a number of 4,000 digits": b'{"study": {"trials": ' + b"9" * 4000 + b"}}",
    "a number of 4,000 digits deep inside": b'{"study": {"space": {"learning_rate": {"low": 1, "high": ' + b"9" * 4000 + b"}}}}",
    "a float without end": b'{"study": {"timeout": 1e999}}',
    "no number": b'{"study": {"timeout": NaN}}',
    "200,000 values": b'{"study": {"space": {"a": [' + b"1," * 200_000 + b"1]}}}",
    "90,000 values of YAML": b'{"yaml": "space: {a: [' + b"1," * 90_000 + b'1]}"}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_that_costs_much_or_cannot_be_held_is_refused_with_a_sentence(server, body):
    status, answer = server.ask("POST", "/api/studies", body)
    assert status in (400, 422), answer
    assert 10 < len(answer["detail"]) < 1000
