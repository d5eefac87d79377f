"""Copies of what a study leaves: through a real local folder and fsspec's own file system in memory."""

import importlib.util
import json
from pathlib import Path

import pytest

from hpsearch.artifacts import deliver, place
from hpsearch.errors import FixInput
from hpsearch.service.guard import make_guard
from hpsearch.spec import parse_spec
from tests.support.commands import HPSEARCH, run_command


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / name for name in ("report.html", "trial-0001.safetensors")]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * (5 << 20))
    return [str(path) for path in paths]


@pytest.mark.parametrize("scheme", ["{}/far/away", "file://{}/far", "memory://bucket{}"])
def test_files_arrive_whole_and_again_in_place_of_the_last_ones(files, tmp_path, scheme):
    uri = scheme.format(tmp_path)
    for _ in range(2):
        assert deliver(files, uri, "my study") == ""
        system, folder = place(uri, "my study")
        assert sorted(Path(found).name for found in system.ls(folder, detail=False)) == ["report.html", "trial-0001.safetensors"]
        assert all(system.cat(f"{folder}/{Path(file).name}") == Path(file).read_bytes() for file in files)
        Path(files[0]).write_bytes(b"another")


def test_a_store_that_fails_is_told_and_fails_nothing(files, tmp_path):
    (tmp_path / "occupied").write_text("")
    told = deliver(files, f"{tmp_path}/occupied", "s")
    assert told.startswith("the artifacts could not be copied to")
    assert "repeat the command" in told


@pytest.mark.parametrize("uri", ["nothing://bucket", *(["s3://bucket/x"] if importlib.util.find_spec("s3fs") is None else [])])
def test_a_store_that_is_not_there_is_refused_with_what_to_install(uri):
    with pytest.raises(FixInput, match="s3fs" if "s3" in uri else "not known|unknown|Protocol"):
        place(uri, "s")


def hpsearch(folder, *arguments):
    command = [HPSEARCH, *arguments]
    return run_command(command, cwd=folder)


@pytest.mark.process
def test_a_study_leaves_its_copy_and_a_bad_place_ends_it_before_it_begins(tmp_path):
    options = ("run", "--trials", "2", "--workers", "1", "--no-tracking", "--name", "s")
    done = hpsearch(tmp_path, *options, "--set", "artifacts=nothing://x")
    assert (done.returncode, list(tmp_path.iterdir())) == (2, []), done.stderr
    done = hpsearch(tmp_path, *options, "--set", "artifacts=copies")
    assert done.returncode == 0, done.stderr
    copied = {path.name: path for path in (tmp_path / "copies" / "s").iterdir()}
    assert {"report.html", "spec.json"} < set(copied)
    weights = [name for name in copied if name.endswith(".safetensors")]
    assert [(tmp_path / "hpsearch-runs" / "s" / name).read_bytes() == copied[name].read_bytes() for name in weights] == [True]
    assert json.loads(copied["spec.json"].read_text())["artifacts"] == "copies"


@pytest.mark.parametrize("key", ["artifacts", "ray_address"])
def test_a_server_is_sent_nowhere_by_what_is_submitted(tmp_path, key):
    spec = parse_spec({key: "file:///etc/cron.d" if key == "artifacts" else "elsewhere:6379", "executor": "ray"})
    with pytest.raises(FixInput, match="may not send a server elsewhere"):
        make_guard("127.0.0.1", "", (), (), False, tmp_path).admit(spec, tmp_path)
