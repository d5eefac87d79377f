"""`hpsearch replay`: a recorded trial comes out the same when it is trained again, and what is not the same is found."""

import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from dataclasses import replace

import pytest

from hpsearch.provenance import remembered, session_at
from hpsearch.replaying import CLOSE, DIFFERENT, EQUAL, compared, epochs_to_train
from hpsearch.types import Outcome, Status
from tests.events import RECORDS, record
from tests.finetune.image_files import make_folder, write
from tests.support.commands import HPSEARCH, Command, run_command

QUICK = ("--no-tracking", "--workers", "1", "--set", "space.epochs=[4, 8]")


def hpsearch(folder, *arguments, code=0):
    done = run_command([HPSEARCH, *arguments], cwd=folder, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def verified(folder, study, trial, code=0):
    return json.loads(hpsearch(folder, "replay", study, str(trial), "--verify", "--json", code=code).stdout)


def everything(folder):
    """Each file with its content."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change(folder, key, alter):
    """Change what the storage holds of a study or trial: `alter` gets the values and gives them back."""
    table = "study_user_attributes" if key is None else "trial_user_attributes"
    where = "" if key is None else f" AND trial_id = (SELECT trial_id FROM trials WHERE number = {key} LIMIT 1)"
    with closing(sqlite3.connect(folder / "hpsearch.db")) as db, db:
        (text,) = db.execute(f"SELECT value_json FROM {table} WHERE key = 'hpsearch'{where}").fetchone()
        values = json.loads(text)
        alter(values)
        db.execute(f"UPDATE {table} SET value_json = ? WHERE key = 'hpsearch'{where}", (json.dumps(values),))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with a study that confirmed its best, and its trials."""
    folder = tmp_path_factory.mktemp("replayed")
    hpsearch(folder, "run", "--name", "s", "--trials", "10", "--confirm", "1x2", *QUICK)
    return folder, json.loads(hpsearch(folder, "show", "s", "--json").stdout)["trials"]


def cut_off(folder, command, line, number):
    """Run a study until it prints a line that begins so, and send it a signal a moment later, in the middle of its next trial."""
    process = Command([HPSEARCH, *command], cwd=folder, stdout=subprocess.PIPE, text=True)
    for told in process.stdout:
        if told.startswith(line):
            break
    time.sleep(0.5)
    process.send_signal(number)
    process.stdout.read()
    process.wait(60)
    process.stdout.close()


@pytest.mark.process
def test_trials_that_were_interrupted_and_went_on_come_out_as_if_trained_in_one_piece(tmp_path):
    long = ("--no-tracking", "--workers", "1", "--set", "space.epochs=24", "--set", "space.frozen_layers=0", "--pruner", "none")
    command = ("run", "--name", "long", "--trials", "3", *long)
    cut_off(tmp_path, command, "[1/3]", signal.SIGINT)
    cut_off(tmp_path, command, "[2/3]", signal.SIGKILL)
    hpsearch(tmp_path, *command)
    trials = json.loads(hpsearch(tmp_path, "show", "long", "--json").stdout)["trials"]
    assert [t["attempt"] for t in trials] == [1, 2, 2]
    for number in (1, 2):
        found = verified(tmp_path, "long", number)
        assert (found["verdict"], found["exact"], len(found["replayed"])) == (EQUAL, True, 24)


@pytest.mark.process
def test_trials_of_every_fate_come_out_the_same_to_the_last_bit_and_nothing_is_written(done):
    folder, trials = done
    before = everything(folder)
    best = hpsearch(folder, "best", "s", "--json").stdout
    chosen = {t["status"]: t["number"] for t in trials}
    assert {"COMPLETE", "PRUNED"} <= set(chosen)
    for trial in {*chosen.values(), json.loads(best)["number"]}:
        found = verified(folder, "s", trial)
        assert (found["verdict"], found["exact"], found["first"], found["largest"], found["remarks"]) == (EQUAL, True, None, {}, [])
        assert len(found["recorded"]) == len(found["replayed"]) == len(trials[trial]["curve"])
        assert found["status"] == {"recorded": trials[trial]["status"], "replayed": trials[trial]["status"]}
        assert found["weights"] == (EQUAL if trial == json.loads(best)["number"] else "")
    assert everything(folder) == before


@pytest.mark.process
def test_a_run_beside_the_search_is_replayed_by_its_name(done):
    folder, _ = done
    name = f"confirm-{json.loads(hpsearch(folder, 'best', 's', '--json').stdout)['number']:04d}-seed-1"
    text = hpsearch(folder, "replay", "s", name, "--verify").stdout
    assert name in text
    assert "to the last bit" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "did you mean 'confirm-" in hpsearch(folder, "replay", "s", name.replace("seed-1", "seed-9"), code=2).stderr
    assert "its trials are 0 to 9" in hpsearch(folder, "replay", "s", "10", code=2).stderr


@pytest.mark.process
def test_a_curve_that_was_tampered_with_is_found(done, tmp_path):
    folder, trials = done
    shutil.copytree(folder, tmp_path / "copy")
    row = next(t for t in trials if t["status"] == "COMPLETE")
    changed = math.nextafter(row["curve"][2]["val_loss"], 9.0)
    change(tmp_path / "copy", row["number"], lambda values: values["curve"][2].update(val_loss=changed))
    found = verified(tmp_path / "copy", "s", row["number"], code=3)
    assert (found["verdict"], found["first"], list(found["largest"])) == (DIFFERENT, 3, ["val_loss"])
    told = hpsearch(tmp_path / "copy", "replay", "s", str(row["number"]))  # only looked at: no failure
    assert "Different from epoch 3 on" in told.stdout


@pytest.mark.process
def test_under_other_libraries_exactness_is_not_promised_and_a_tolerance_holds(done, tmp_path):
    folder, trials = done
    shutil.copytree(folder, tmp_path / "copy")
    row = next(t for t in trials if t["status"] == "COMPLETE")

    def older(values):
        for session in values["facts"]["sessions"]:
            session["versions"]["torch"] = "2.0"

    change(tmp_path / "copy", None, older)
    change(tmp_path / "copy", row["number"], lambda values: values["curve"][2].update(val_loss=1.001 * row["curve"][2]["val_loss"]))
    found = verified(tmp_path / "copy", "s", row["number"])
    assert (found["verdict"], found["exact"], found["first"]) == (CLOSE, False, 3)
    assert found["remarks"][0].startswith("torch: 2.0 -> ")
    change(tmp_path / "copy", row["number"], lambda values: values["curve"][2].update(val_loss=1.1 * row["curve"][2]["val_loss"]))
    assert verified(tmp_path / "copy", "s", row["number"], code=3)["verdict"] == DIFFERENT


@pytest.mark.process
def test_a_trial_that_diverged_diverges_again(tmp_path):
    hot = ("--set", "space.learning_rate=1000", "--set", "space.frozen_layers=0", "--set", "recipe.optimizer=sgd")
    hpsearch(tmp_path, "run", "--name", "hot", "--trials", "1", *QUICK, *hot, code=1)
    found = verified(tmp_path, "hot", 0)
    assert (found["verdict"], found["status"]) == (EQUAL, {"recorded": "FAILED", "replayed": "FAILED"})
    change(tmp_path, 0, lambda values: values.update(error="diverged: training loss is inf after epoch 2 of 4"))
    assert verified(tmp_path, "hot", 0, code=3)["verdict"] == DIFFERENT


@pytest.mark.process
def test_other_images_are_refused_with_the_difference(tmp_path):
    make_folder(tmp_path / "photos", {"cat": 24, "dog": 24})
    hpsearch(tmp_path, "run", "--name", "own", "--data", "photos", "--model", "glyphnet", "--trials", "1", *QUICK)
    assert verified(tmp_path, "own", 0)["verdict"] == EQUAL
    write(tmp_path / "photos" / "dog" / "more.png", seed=77)
    refused = hpsearch(tmp_path, "replay", "own", "0", code=2).stderr
    assert "was trained on something else" in refused
    assert "images, labels or splits: digest" in refused
    assert "train images: " in refused
    assert not [path for path in (tmp_path / "hpsearch-runs" / "own").iterdir() if path.suffix == ".tmp"]


@pytest.mark.process
def test_an_interrupted_replay_leaves_nothing(done, tmp_path):
    folder, _ = done
    before = everything(folder)
    command = [HPSEARCH, "replay", "s", "0"]
    process = Command(command, cwd=folder, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)})
    while not list(tmp_path.glob("hpsearch-replay-*")) and process.poll() is None:
        pass
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (0, 130)  # it may have been done
    assert not list(tmp_path.glob("hpsearch-replay-*"))
    assert everything(folder) == before


# ---------------------------------------------------------------- the comparison alone


def outcome(r, **changes):
    return replace(Outcome(r.number, r.status, r.val_loss, r.best_epoch, error=r.error), **changes)


def judged(r, curve=None, exact=True, weights="", **changes):
    return compared("s", r, r.curve if curve is None else curve, outcome(r, **changes), exact, (), weights)


@pytest.mark.parametrize("r", RECORDS, ids=lambda r: r.status.value)
def test_what_is_the_same_is_equal_whatever_it_took(r):
    slower = [{**row, "seconds": 9.0, "images_per_second": 1.0} for row in r.curve]
    assert judged(r, slower).verdict == EQUAL


def test_numbers_that_are_none_equal_one_another():
    r = record(0, Status.COMPLETE, [1.0, math.nan])
    assert judged(r).verdict == EQUAL


def test_an_epoch_too_few_or_too_many_is_a_difference():
    r = RECORDS[3]
    assert (judged(r, r.curve[:3]).verdict, judged(r, r.curve[:3]).first) == (DIFFERENT, 4)
    assert judged(r, [*r.curve, {**r.curve[3], "epoch": 5}], exact=False).verdict == DIFFERENT


def test_a_failure_that_was_not_there_is_a_difference():
    assert judged(RECORDS[3], status=Status.FAILED, error="RuntimeError: no").verdict == DIFFERENT


def test_a_worker_that_was_killed_does_not_have_to_be_killed_again():
    r = record(2, Status.FAILED, [2.0, 1.5], "worker 0 was killed by signal 9 while training")
    again = judged(r, [*r.curve, {**r.curve[1], "epoch": 3}], status=Status.PRUNED, error=None)
    assert again.verdict == EQUAL
    assert "now it did not" in again.remarks[0]


def test_other_weights_are_a_difference():
    assert judged(RECORDS[3], weights=DIFFERENT).verdict == DIFFERENT


def test_a_trial_is_trained_as_far_as_it_went():
    assert [epochs_to_train(r) for r in RECORDS] == [None, 2, 2, None]


def test_a_trial_is_compared_with_the_session_that_trained_it():
    first, second = {"versions": {"torch": "2.11"}, "threads": 1}, {"versions": {"torch": "2.12"}, "threads": 1}
    facts = remembered({}, first, 10.0)
    facts = remembered(facts, first, 20.0)
    facts = remembered(facts, second, 30.0)
    assert [s["since"] for s in facts["sessions"]] == [10.0, 30.0]
    assert [session_at(facts, at)["versions"]["torch"] for at in (15.0, 29.0, 31.0)] == ["2.11", "2.11", "2.12"]
    assert session_at(first, 15.0) == first
