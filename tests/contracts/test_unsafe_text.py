"""The contract of every door: text that no store or terminal may get is cleaned or refused on the way in, and escaped on the way out."""

import io
import json
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from hpsearch.cli import main
from hpsearch.core.text import LONGEST, UNSAFE, cleaned, cleaned_json, harmless, printable, showable
from hpsearch.errors import FixInput
from hpsearch.options import echo
from hpsearch.search.catalog import read_study
from hpsearch.search.queue import Queue
from hpsearch.search.searcher import OptunaSearcher
from hpsearch.search.store import open_storage, opened
from hpsearch.service.errors import problem
from hpsearch.spec import parse_spec
from hpsearch.terminal import Lines, SafeConsole
from hpsearch.tracking import MlflowTracker
from hpsearch.types import Facts, Outcome, Status, TrialEnded, finite_json
from tests.events import study_events
from tests.service.serving import Server

BAD = "caf\udce9\x00.png \x1b[31mred \x9b2J\u202eabc\u2066 \ud800"
GOOD = r"caf\xe9\x00.png \x1b[31mred \u009b2J\u202eabc\u2066 \ud800"


@given(st.text(st.characters(codec=None) | st.sampled_from("\x00\x1b\n\t\u202e\u2066\ud800\udce9\x85"), max_size=40))
def test_what_was_cleaned_is_text_for_every_store_and_stays_as_it_is(text):
    found = cleaned(text)
    assert not UNSAFE.search(found.replace("\n", ""))
    assert found.encode().decode() == found
    assert found == cleaned(found) == harmless(text)
    assert found.count("\n") == text.count("\n")


def test_a_text_of_40_million_characters_loses_its_middle():
    found = cleaned("a" * 40_000_000 + "b")
    assert len(found) < LONGEST + 100
    assert "39,980,001 characters left out" in found
    assert found[0] + found[-1] == "ab"


# ---------------------------------------------------------------- in


def test_what_a_trial_says_is_cleaned_when_it_becomes_an_outcome():
    outcome = Outcome(3, Status.FAILED, error=f"ValueError: {BAD}\nsecond line", remark=BAD)
    assert (outcome.error, outcome.remark) == (f"ValueError: {GOOD}\nsecond line", GOOD)


def test_names_that_a_worker_found_in_data_are_cleaned():
    assert Facts({"classes": ["cat", BAD], BAD: 1}).values == {"classes": ["cat", GOOD], GOOD: 1}
    assert printable(BAD) == GOOD


@pytest.mark.parametrize("text", ["\x00", "a\x1b[2J", "\x9b", "\u202e", "\u2069", "\ud800", "caf\udce9"], ids=ascii)
@pytest.mark.parametrize("key", ["data", "weights", "data_root", "artifacts"])
def test_a_study_that_names_such_text_is_refused_with_its_key_and_a_remedy(key, text):
    with pytest.raises(FixInput, match=rf"{key}: .* cannot be stored or shown: take it out, or rename") as caught:
        parse_spec({key: text})
    assert not UNSAFE.search(str(caught.value).replace("\n", ""))


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path)
    yield made
    made.end_all()


@pytest.mark.process
def test_a_request_with_such_text_in_any_field_is_answered_with_a_sentence(server):
    for key in ("data", "weights", "model", "name", "sampler", "data_root", "artifacts", BAD):
        body = json.dumps({"study": {key: BAD, "trials": 1}}).encode()
        status, answer = server.ask("POST", "/api/studies", body)
        assert status == 422, (key, answer)
        assert not UNSAFE.search(answer["detail"].replace("\n", "")), answer
    for field in ("share", "yaml"):
        status, answer = server.ask("POST", "/api/studies", json.dumps({"study": {}, field: BAD}).encode())
        assert (status, field in answer["detail"]) == (422, True), answer
    assert "Traceback" not in (server.folder / "serve.log").read_text()


# ---------------------------------------------------------------- stores


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/hpsearch.db"
    return request.getfixturevalue("postgres").database()


@pytest.mark.process
def test_a_failed_trials_error_is_stored_by_every_storage(store):
    storage = open_storage(store, create=True)
    with closing(OptunaSearcher(parse_spec({"trials": 2, "sampler": "random"}), storage)) as searcher:
        (trial,) = searcher.ask()
        searcher.tell(Outcome(trial.number, Status.FAILED, error=BAD))
    with opened(store) as storage:
        assert [record.error for record in read_study(storage, "digits-random").records] == [GOOD]
    with closing(Queue(store)) as queue:
        number = queue.add("a", {}, 1)[0].id
        queue.claim(number, 7, 1.0, 0)
        queue.conclude(number, 7, "failed", BAD)
        assert queue.latest("a").note == GOOD


def test_mlflow_takes_a_study_that_is_full_of_such_text(tmp_path, new_store):
    uri = new_store(tmp_path)
    tracker = MlflowTracker(uri, tmp_path)
    for event in study_events():
        if isinstance(event, TrialEnded) and event.record.status is Status.FAILED:
            event = replace(event, record=replace(event.record, error=BAD, effective={"path": BAD}))
        tracker.record(event)
    tracker.close()
    assert tracker.problem == ""
    client = MlflowClient(uri)
    (experiment,) = [e.experiment_id for e in client.search_experiments() if e.name != "Default"]
    tags = [run.data.tags for run in client.search_runs([experiment])]
    assert GOOD in [tag.get("hpsearch.error") for tag in tags]
    assert GOOD in [tag.get("hpsearch.effective.path") for tag in tags]


# ---------------------------------------------------------------- out


def test_no_console_and_no_command_writes_it(capsys):
    out = io.StringIO()
    console = SafeConsole(file=out, width=200, force_terminal=True, color_system="standard")
    lines = Lines(console)
    for event in study_events():
        if isinstance(event, TrialEnded):
            event = replace(event, record=replace(event.record, status=Status.FAILED, error=BAD))
        lines.record(event)
    console.print(BAD, style="bold", markup=False, highlight=False)
    assert f"\x1b[1m{GOOD}\x1b[0m" in out.getvalue()  # its own style is there, and nothing else
    assert "\x1b[31mred" not in out.getvalue()
    echo(BAD)
    echo(BAD, err=True)
    assert capsys.readouterr() == (GOOD + "\n", GOOD + "\n")


def test_a_storage_of_somebody_else_reaches_no_terminal_raw(url, folder):
    storage = open_storage(url, create=True)
    OptunaSearcher(parse_spec({"trials": 1}), storage).close()
    with closing(sqlite3.connect(folder / "hpsearch.db")) as db:
        db.execute("UPDATE studies SET study_name = ?", ("\x1b[31mred\u202e",))
        db.commit()
    for command in (["list"], ["show", "\x1b[31mred\u202e"]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
        assert r"\x1b[31mred\u202e" in result.output
        assert not UNSAFE.search(result.output.replace("\n", ""))


def test_answers_and_pages_hold_no_such_text():
    assert finite_json({BAD: [BAD, 1.0]}) == {GOOD: [GOOD, 1.0]} == cleaned_json({BAD: [BAD, 1.0]})
    assert json.loads(problem(422, BAD).body)["detail"] == GOOD
    assert showable(f"<p>\t{BAD}\n</p>") == f"<p>\t{GOOD}\n</p>"
