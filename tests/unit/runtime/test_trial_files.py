"""Only a study's own files are found and deleted, whatever a record says."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.runtime.trial_files import TrialFiles
from hpsearch.types import RUN_NAME, Setup, Status, TrialRecord

OURS = ["trial-0003.safetensors", "trial-12345.state", "trial-0003-epoch-4.state", "confirm-0003-seed-1.safetensors", "again-0003.state"]
THEIRS = ["report.html", "study.json", "mine.safetensors", "notes.state", "trial-3.safetensors", "trial-0003.json"]
NOWHERE = ["..", ".", "", "results"]


@pytest.fixture
def folder(tmp_path):
    study = tmp_path / "hpsearch-runs" / "s"
    study.mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    return study


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("before", ["", "/somewhere/else/", "../../outside/", "./"])
def test_a_file_of_ours_is_found_by_its_name_wherever_a_record_says_it_was(folder, name, before):
    (folder / name).touch()
    (folder.parents[1] / "outside" / name).touch()
    files = TrialFiles(folder)
    assert files.find(before + name) == folder / name
    files.delete(before + name)
    assert files.find(name) is None
    assert (folder.parents[1] / "outside" / name).exists()


@pytest.mark.parametrize("name", THEIRS + NOWHERE)
def test_other_files_of_the_folder_are_nobodys_to_delete(folder, name):
    (folder / "results").mkdir()
    for other in THEIRS:
        (folder / other).touch()
    before = everything(folder)
    TrialFiles(folder).delete(name)
    TrialFiles(folder).delete(str(folder / name))
    assert everything(folder) == before
    assert TrialFiles(folder).find(name) is None


@given(
    name=st.text(st.sampled_from("./\\\0\n~ ") | st.characters(codec="utf-8"), max_size=40) | st.sampled_from([f"{n}/../x" for n in OURS])
)
def test_no_text_leads_out_of_the_folder(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp() / "any" / "s"
    folder.mkdir(parents=True, exist_ok=True)
    located = TrialFiles(folder).locate(name)
    assert located is None or located.parent == folder


def test_a_link_out_of_the_folder_is_not_followed(folder):
    victim = folder.parents[1] / "outside" / "trial-0001.safetensors"
    victim.write_text("my thesis")
    (folder / "trial-0001.safetensors").symlink_to(victim)
    assert TrialFiles(folder).find("trial-0001.safetensors") is None
    TrialFiles(folder).delete("trial-0001.safetensors")
    assert victim.read_text() == "my thesis"


def test_a_study_without_a_folder_has_no_files():
    TrialFiles(None).delete("trial-0001.safetensors")
    assert TrialFiles(None).find("trial-0001.safetensors") is None


def test_records_hold_names():
    blank = {f.name: None for f in fields(TrialRecord) if f.name not in ("setup", "reused", "remark", "objective", "per_class")}
    record = TrialRecord(**(blank | {"number": 1, "status": Status.PAUSED, "checkpoint": "/a/b/trial-0001.safetensors", "state": "../x"}))
    assert (record.checkpoint, record.state) == ("trial-0001.safetensors", "x")


@pytest.mark.parametrize("name", ["../../x", "confirm-0001/../../x", "", "..", ".hidden", "a b", "a\nb"])
def test_the_name_of_a_run_leads_nowhere(name):
    with pytest.raises(ValueError, match="no name of a run"):
        Setup(name, 0)


@given(st.from_regex(RUN_NAME, fullmatch=True))
def test_every_name_of_a_run_is_one_part_of_a_path(name):
    assert "/" not in name
    assert Setup(name, 0).name == name
