"""A study's files on a machine that lacks them. Images and an own weights file on their way through Ray: tests/test_ray.py."""

import json
from pathlib import Path

import pytest
import torch

from hpsearch.errors import FixSetup
from hpsearch.finetune import shelf
from hpsearch.finetune.parcel import local_images, local_weights, unpacked


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A machine of its own: an empty cache and torch's empty folder. Gives a way to fetch files, with a list of those that were."""
    monkeypatch.setenv("HPSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    paths = []

    def fetch(path):
        paths.append(path)
        content = Path(path).read_bytes()
        yield content[:3]
        yield content[3:]

    fetch.paths = paths
    return fetch


def entry(folder, images, row=12):
    """An entry of the pixel cache, of gray 2-pixel images; sound if `row` is right."""
    folder.mkdir(parents=True)
    geometry = [3, 2]
    for name, size in shelf.row_bytes(geometry).items():
        (folder / name).write_bytes(bytes(images * (row if name == "images.u8" else size)))
    meta = {"layout": shelf.LAYOUT, "geometry": geometry, "data": "d", "items": images, "bytes": 1, "images": images, "bad": {}}
    (folder / "entry.json").write_text(json.dumps(meta))
    return folder


def test_decoded_images_are_fetched_once_and_are_an_entry_like_others(asked, tmp_path):
    there = entry(tmp_path / "elsewhere" / "abc", 5)
    here = local_images(there, asked)
    assert here == tmp_path / "cache" / "images" / "abc"
    assert shelf.sound(here)
    assert sorted(Path(path).name for path in asked.paths) == sorted(shelf.FILES)
    assert [e.key for e in shelf.entries(tmp_path / "cache")] == ["abc"]
    assert local_images(there, asked) == here
    assert len(asked.paths) == len(shelf.FILES)


def test_images_that_are_not_whole_are_refused_and_leave_no_entry(asked, tmp_path):
    there = entry(tmp_path / "elsewhere" / "abc", 5, row=11)
    with pytest.raises(FixSetup, match="changed while they were fetched"):
        local_images(there, asked)
    assert shelf.entries(tmp_path / "cache") == []


def test_published_weights_are_fetched_once_and_own_ones_by_every_worker(asked, tmp_path):
    file = tmp_path / "net-0123abcd.pth"
    file.write_bytes(b"weights")
    for _ in range(2):
        here = local_weights(str(file), False, tmp_path / "scratch", asked)
        assert here == tmp_path / "hub" / "checkpoints" / file.name
        assert here.read_bytes() == b"weights"
    assert len(asked.paths) == 1
    (tmp_path / "scratch").mkdir()
    for _ in range(2):
        assert local_weights(str(file), True, tmp_path / "scratch", asked).read_bytes() == b"weights"
    assert len(asked.paths) == 3


def test_a_kernel_of_this_machine_is_left_as_it_is():
    config = {"index": "a.npz", "weights": "DEFAULT", "files": {"resnet18": "/hub/resnet18.pth"}}
    assert unpacked(config) is config
