"""What a served study can learn of files that lie outside the folders for data: nothing."""

import os
import shutil
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from hpsearch.errors import FixInput
from hpsearch.finetune.images import Unusable, read_file
from hpsearch.finetune.prepare import prepare
from hpsearch.finetune.roots import VARIABLE, leads_out, open_inside, roots_in_words
from hpsearch.finetune.sources import open_source
from hpsearch.spec import load_spec


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def served(folder, monkeypatch):
    """A folder of images in which a server may read data, beside one in which it may not."""
    for i, name in enumerate(("cat", "dog")):
        for j in range(8):
            picture(folder / "data" / "photos" / name / f"{j}.png", 10 * i + j)
    picture(folder / "outside" / "secret.png", 99)
    monkeypatch.setenv(VARIABLE, roots_in_words([folder / "data"]))
    return folder


LINKS = {
    "a file": "photos/cat/x.png",
    "a file without an ending": "photos/cat/x",
    "a class": "photos/owl",
    "a folder in a class": "photos/cat/more",
    "a dotted folder": "photos/.owl",
    "a table": "photos/metadata.csv",
    "a split": "photos/train",
    "a text beside": "photos/labels.txt",
}


@pytest.mark.parametrize("place", LINKS.values(), ids=LINKS)
def test_a_link_out_of_the_data_says_the_same_whatever_is_there(served, place):
    said = []
    for make in (
        lambda path: None,
        lambda path: shutil.copy(served / "outside" / "secret.png", path),
        lambda path: path.write_text("file_name,label\ncat/1.png,dog\n"),
        lambda path: [picture(path / name / "1.png", 5) for name in ("cat", "dog")],
        os.mkfifo,
    ):
        target = served / "outside" / "target"
        shutil.rmtree(target, ignore_errors=True)
        target.unlink(missing_ok=True)
        make(target)
        link = served / "data" / place
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        report = prepare({**load_spec(None, (), {"data": "data/photos"}).resolved(), "model": None}).report
        said.append(asdict(report))
    assert all(one == said[0] for one in said)
    assert sum(map(sum, said[0]["counts"].values())) == 16
    assert any("1 path leads out of the folders that this server reads data from" in f["text"] for f in said[0]["findings"])


@pytest.mark.parametrize(
    "written", ["../outside/{name}", "{folder}/outside/{name}", "link/{name}", "link/{stem}", "photos/../../outside/{name}"]
)
def test_a_path_of_a_table_that_leads_out_says_the_same_whatever_is_there(served, written):
    (served / "data" / "link").symlink_to(served / "outside")
    said = []
    for name in ("secret.png", "absent.png"):
        rows = [f"photos/{c}/{i}.png,{c}" for c in ("cat", "dog") for i in range(8)]
        rows.append(f"{written.format(folder=served, name=name, stem=name[:-4])},cat")
        (served / "data" / "t.csv").write_text("\n".join(["path,label", *rows]))
        source = open_source("data/t.csv")
        assert len(source.items) == 16
        said.append([remark.text.replace(name, "").replace(name[:-4], "") for remark in source.remarks])
    assert said[0] == said[1]
    assert "1 path leads out" in said[0][0]
    (served / "data" / "t.csv").write_text("path,label\n../outside/secret.png,a\n../outside/absent.png,b\n")
    with pytest.raises(FixInput, match="none of the 0 files"):
        open_source("data/t.csv")


def test_data_that_became_a_link_after_it_was_admitted_is_not_read(served):
    (served / "data" / "later").symlink_to(served / "outside")
    for data in ("data/later", "data/later/secret.png", "outside", "nowhere/else"):
        with pytest.raises(FixInput, match="is not in a folder that this server reads data from"):
            open_source(data)
    with pytest.raises(FixInput, match="there is no data 'nowhere'"):
        open_source("nowhere")


def test_a_file_that_became_a_link_after_it_was_listed_is_not_read(served):
    path = served / "data" / "photos" / "cat" / "0.png"
    assert read_file(path)
    for target in ("secret.png", "absent.png"):
        path.unlink()
        path.symlink_to(served / "outside" / target)
        with pytest.raises(Unusable, match=r"^not found$"):
            read_file(path)


def test_a_file_is_opened_only_where_it_lies_inside(served):
    inside = served / "data" / "t.csv"
    inside.write_text("path,label\n")
    with open_inside(inside, "r", encoding="utf-8") as file:
        assert file.read() == "path,label\n"
    (served / "outside" / "t.csv").write_text("secret")
    for target in ("t.csv", "absent.csv"):
        link = served / "data" / f"to-{target}"
        link.symlink_to(served / "outside" / target)
        with pytest.raises(FileNotFoundError) as caught:
            open_inside(link, "r")
        assert str(caught.value) == f"[Errno 2] No such file or directory: '{link}'"
    os.mkfifo(served / "data" / "pipe")
    with open_inside(served / "data" / "pipe", "rb") as file:
        assert file.read(1) == b""


def test_links_inside_the_roots_and_those_of_a_person_are_followed(served, monkeypatch):
    (served / "data" / "photos" / "owl").symlink_to(served / "data" / "store")
    picture(served / "data" / "store" / "1.png", 50)
    assert open_source("data/photos").classes == ("cat", "dog", "owl")
    (served / "data" / "photos" / "fox").symlink_to(served / "outside")
    assert open_source("data/photos").classes == ("cat", "dog", "owl")
    monkeypatch.delenv(VARIABLE)
    assert open_source("data/photos").classes == ("cat", "dog", "fox", "owl")
    assert not leads_out("/etc")
