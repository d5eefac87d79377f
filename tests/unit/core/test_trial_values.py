"""What a stored trial may hold, and that one bad file, attribute or study keeps nobody else from being read."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest

from hpsearch.core.trial_values import trial_values
from hpsearch.errors import FixSetup
from hpsearch.keeping import GAP, later_results, read_result, read_results, unusable_results, write_result
from hpsearch.places import place
from hpsearch.rebuilding import rebuild
from hpsearch.search.catalog import read_study
from hpsearch.search.queue import Queue
from hpsearch.search.records import OPENINGS, RECORD, RUN
from hpsearch.search.searcher import OptunaSearcher
from hpsearch.search.store import open_storage
from hpsearch.service.reader import Reader, about
from hpsearch.spec import parse_spec
from hpsearch.types import Outcome, Progress, Setup, Status, StoredStudy, TrialRecord

ROW = {"epoch": 1, "val_loss": 1.5, "train_loss": 1.4, "seconds": 0.1, "accuracy": 0.5}
RECORD_3 = TrialRecord(
    number=3,
    status=Status.COMPLETE,
    params={"learning_rate": 0.01, "epochs": 1},
    origin="sampled",
    attempt=1,
    val_loss=1.5,
    best_epoch=1,
    seconds=0.1,
    started=1.7e9,
    ended=1.7e9,
    metrics={"accuracy": 0.5},
    effective={"learning_rate": 0.01},
    curve=[ROW],
    checkpoint="trial-0003.safetensors",
    error=None,
    per_class={"recall": [0.5, 1.0]},
)
BAD = {
    "number": [10**7, "x", None, 1.5, True],
    "status": ["RUNNING", "WAITING", "DONE", 1],
    "params": [None, [1], {"a": [1]}, {"a": math.nan}, {"a": math.inf}],
    "attempt": ["x", -1, None],
    "val_loss": ["x", None, math.nan, -math.inf],
    "best_epoch": ["x", 1.5, 10**9],
    "seconds": ["x", -math.inf, math.nan, -1.0],
    "started": ["x", math.inf],
    "metrics": [None, "x", {"accuracy": "x"}],
    "effective": [{"a": {"b": 1}}, json.loads("[" * 400 + "]" * 400)],
    "curve": [None, 5, ["x"], [{}], [{**ROW, "epoch": "1"}], [{**ROW, "val_loss": "x"}], [ROW] * 100_001],
    "checkpoint": [5],
    "error": [5],
    "objective": ["nope", 1],
    "per_class": [{"recall": [1.0], "f1": []}, {"recall": "x"}],
    "setup": [[1], {}, {"x": 1}, {"name": "../../x", "like": 0}, {"name": "a", "like": "x"}],
}


@pytest.fixture
def results(tmp_path):
    """A folder with a result, and what writes its fields anew."""
    write_result(tmp_path, RECORD_3, "uid")
    path = tmp_path / "results" / "trial-0003.json"

    def edit(**values):
        path.write_text(json.dumps({"study": "uid", **asdict(RECORD_3), **values}))
        return tmp_path

    return edit


def test_what_was_written_is_read_as_it_was(results):
    assert asdict(read_result(results(), "trial-0003", "uid")) == asdict(RECORD_3)
    assert unusable_results(results(), "uid") == []


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values], ids=lambda v: str(v)[:20])
def test_a_result_with_a_field_that_is_wrong_is_left_out_with_its_reason(results, key, value):
    folder = results(**{key: value})
    assert read_results(folder, "uid") == later_results(folder, "uid", 0) == {}
    (reason,) = unusable_results(folder, "uid")
    assert reason.startswith("trial-0003.json: ")
    assert key in reason
    assert len(reason) < 200


def test_a_result_under_another_name_or_that_is_no_file_of_ours_is_left_out(results, tmp_path):
    folder = results() / "results"
    (folder / "trial-0004.json").write_bytes((folder / "trial-0003.json").read_bytes())
    (folder / "trial-0005.json").write_text("[" * 100_000)
    (folder / "trial-0006.json").write_text("{")
    (folder / "trial-0007.json").write_text("[1]")
    (folder / "trial-0008.json").mkdir()
    (folder / "trial-0009.json").write_bytes(b"\xff")
    assert [*read_results(tmp_path, "uid")] == ["trial-0003"]
    reasons = "\n".join(unusable_results(tmp_path, "uid"))
    assert [line.partition(":")[0] for line in reasons.split("\n")] == [f"trial-000{i}.json" for i in range(4, 10)]
    assert "it is that of trial-0003" in reasons


def test_a_result_far_behind_all_others_is_not_filled_up_to(tmp_path):
    for number in (0, 1, GAP, 5 * GAP):
        write_result(tmp_path, TrialRecord(**{**asdict(RECORD_3), "number": number}), "uid")
    assert [*later_results(tmp_path, "uid", 0)] == [0, 1, GAP]
    assert [line.partition(":")[0] for line in unusable_results(tmp_path, "uid")] == [f"trial-{5 * GAP}.json"]


def test_texts_are_cleaned_and_a_field_of_another_version_is_passed_over():
    found = trial_values({"error": "caf\udce9\x00\x1b[31m" + "x" * 10**6, "invented": [1]})
    assert [*found] == ["error"]
    assert found["error"].startswith(r"caf\xe9\x00\x1b[31mxxx")
    assert len(found["error"]) < 25_000


# ---------------------------------------------------------------- a storage of somebody else


def searched(storage, folder=None, name="s"):
    """A study of two trials, the first complete."""
    spec = parse_spec({"name": name, "trials": 2, "sampler": "random", "space": {"epochs": 1}})
    searcher = OptunaSearcher(spec, storage, folder=folder)
    for trial in searcher.ask(2):
        searcher.report(Progress(trial.number, 1, 1, 1.5, 1.4, {"accuracy": 0.5}, 0.1))
        outcome = Outcome(trial.number, Status.COMPLETE, 1.5, 1, 0.1, {"accuracy": 0.5})
        record = searcher.tell(outcome)
        if folder is not None:
            write_result(folder, record, searcher.uid)
    searcher.close()
    return storage.get_study_id_from_name(name)


def everything(url, folder, name="s"):
    """A study as commands and the API read it."""
    storage = open_storage(url)
    stored = read_study(storage, name)
    storage.engine.dispose()
    json.dumps(about(stored), allow_nan=False)
    where = place(folder, url, None, False)
    queue = Queue(url)
    reader = Reader(queue, where)
    assert name in [row["study"] for row in reader.overview()]
    reader.trials(name, None, "score", False, 0, 10)
    assert reader.study(name)["study"] == name
    reader.close()
    queue.close()
    return stored


TRIAL = ["x", [1], {"curve": 5}, {"curve": [{}]}, {"val_loss": "x"}, {"metrics": "x"}, {"seconds": "x"}, {"per_class": 1}, {"status": "x"}]


@pytest.mark.parametrize("value", TRIAL, ids=str)
def test_a_trial_whose_record_is_not_ours_is_shown_by_optunas_columns_with_a_remark(url, tmp_path, value):
    storage = open_storage(url, create=True)
    trial = storage.get_all_trials(searched(storage))[1]
    kept = trial.user_attrs[RECORD]
    with storage.engine.begin() as db:
        text = json.dumps({**kept, **value} if isinstance(value, dict) else value)
        change = "UPDATE trial_user_attributes SET value_json = ? WHERE trial_id = ? AND key = 'hpsearch'"
        db.exec_driver_sql(change, (text, trial._trial_id))
    storage.engine.dispose()
    first, second = everything(url, tmp_path).records
    assert (first.remark, first.val_loss, second.val_loss, second.status) == ("", 1.5, 1.5, Status.COMPLETE)
    assert second.remark.startswith("what the storage holds of it beside Optuna's own columns is left out: it")


STUDY = ["x", [1], {"spec": [1]}, {"facts": [1]}, {"spec": {}}, {"spec": 5}, {"uid": 5}, {"headstart": [1]}, {"headstart": {"trials": 1}}]


@pytest.mark.parametrize("value", STUDY, ids=str)
def test_a_study_whose_record_is_not_ours_is_shown_like_one_of_another_program(url, tmp_path, value):
    storage = open_storage(url, create=True)
    study = searched(storage)
    searched(storage, name="other")
    kept = storage.get_study_user_attrs(study)[RECORD]
    storage.set_study_user_attr(study, RECORD, {**kept, **value} if isinstance(value, dict) else value)
    with pytest.raises(FixSetup, match="is damaged"):
        OptunaSearcher(parse_spec({"name": "s"}), storage)
    storage.engine.dispose()
    found = everything(url, tmp_path)
    assert isinstance(found, StoredStudy)
    assert (found.spec, len(found.records)) == ({"objective": "value"}, 2)
    assert found.headstart[0].startswith("What the storage holds of this study is damaged")
    assert everything(url, tmp_path, "other").spec


@pytest.mark.parametrize("value", [5, "x", [1], {"status": "COMPLETE"}, {"setup": {}}], ids=str)
def test_runs_and_looks_at_the_test_split_that_are_not_ours_are_left_out(url, tmp_path, value):
    storage = open_storage(url, create=True)
    study = searched(storage)
    storage.set_study_user_attr(study, f"{RUN}confirm-0001-seed-1", value)
    storage.set_study_user_attr(study, OPENINGS, value)
    storage.engine.dispose()
    found = everything(url, tmp_path)
    assert (found.runs, found.openings) == ((), ())


# ---------------------------------------------------------------- rebuilt


def test_one_damaged_study_and_one_bad_result_keep_nothing_else_from_being_rebuilt(url, tmp_path):
    runs = tmp_path / "hpsearch-runs"
    storage = open_storage(url, create=True)
    for name in ("a", "b", "c"):
        (runs / name).mkdir(parents=True)
        searched(storage, runs / name, name)
    storage.engine.dispose()
    for path in tmp_path.glob("hpsearch.db*"):
        path.unlink()
    (runs / "a" / "study.json").write_text('{"name": "a", "user_attrs": {"hpsearch": [1]}}')
    result = runs / "b" / "results" / "trial-0000.json"
    result.write_text(result.read_text().replace('"params": {', '"params": {"evil": 1, '))
    (runs / "c" / "results" / "trial-0001.json").write_text("{")
    b, c, a = rebuild(place(tmp_path, None, None, False), None)
    assert "study.json cannot be used" in a.refused
    assert [(row.study, row.trials) for row in (b, c)] == [("b", 1), ("c", 1)]
    assert b.left_out == ("trial-0000.json: its configuration is none of the study's space, or its objective is another",)
    assert c.left_out[0].startswith("trial-0001.json: it is no JSON")
    assert Path(result).exists()


def test_a_run_beside_the_search_is_read_like_a_trial(tmp_path):
    record = TrialRecord(**{**asdict(RECORD_3), "number": -1, "setup": Setup("confirm-0001-seed-1", 1, 1, seed=1)})
    write_result(tmp_path, record, "uid")
    assert read_result(tmp_path, "confirm-0001-seed-1", "uid") == record
