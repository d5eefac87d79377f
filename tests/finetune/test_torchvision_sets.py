"""torchvision's data sets, read by torchvision from files that the tests write; nothing is downloaded."""

import inspect
import os
import pickle
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from image_files import make_folder, picture, write
from sklearn.datasets import load_digits

from hpsearch.errors import FixSetup
from hpsearch.finetune.sources import open_source
from hpsearch.finetune.torchvision_sets import DATA_SETS, SETS, classes_of, files_of, labels_of
from tests.support.commands import run_command


@pytest.fixture
def no_network(monkeypatch):
    """Whatever wants to download is refused at once."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)  # made by an earlier test, it would not look at the proxies again


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_table_agrees_with_the_installed_torchvision(name):
    from torchvision import datasets

    for split, arguments in SETS[name].items():
        assert split in (None, "train", "val", "test")
        signature = inspect.signature(getattr(datasets, name))
        signature.bind("root", **arguments, download=False)
        open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        assert open_ended or "download" in signature.parameters
    assert (None in SETS[name]) == (len(SETS[name]) == 1)
    assert None in SETS[name] or "train" in SETS[name]


@pytest.mark.process
def test_the_names_are_known_without_torchvision():
    code = (
        "import sys; from hpsearch.finetune import pixels, torchvision_sets as t; "
        "print(len(t.DATA_SETS), {'torch', 'torchvision', 'pyarrow'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(DATA_SETS)), "set()"]


def idx(array):
    """The content of an idx file, as MNIST's."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.astype(np.uint8).tobytes()


def make_mnist(root, images, labels, test=100):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for prefix, part in (("train", slice(test, None)), ("t10k", slice(0, test))):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images[part]))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels[part]))


def test_mnist_from_its_own_files(tmp_path):
    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)
    make_mnist(tmp_path, images, digits.target)
    source = open_source("mnist", tmp_path)
    assert source.classes[:2] == ("0 - zero", "1 - one")
    assert len(source.items) == len(images)
    first, last = source.items[0], source.items[-1]
    assert (first.name, first.split, first.label) == ("train/0", "train", digits.target[100])
    assert (last.name, last.split, last.label, last.index) == ("test/99", "test", digits.target[99], 99)
    assert [i.label for i in source.items] == [*digits.target[100:], *digits.target[:100]]
    assert (np.asarray(source.read(first)) == images[100]).all()
    assert (np.asarray(source.read(last)) == images[99]).all()


def test_a_fingerprint_changes_with_the_content_and_not_with_the_place(tmp_path):
    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)

    def mark(name, images, labels):
        make_mnist(tmp_path / name, images, labels)
        return open_source("MNIST", tmp_path / name).fingerprint

    first = mark("a", images, digits.target)
    assert first == mark("b", images, digits.target)
    assert first != mark("c", 255 - images, digits.target)
    assert first != mark("d", images, (digits.target + 1) % 10)
    assert first != mark("e", images[:-1], digits.target[:-1])


def test_cifar10_from_its_batches(tmp_path, monkeypatch):
    from torchvision.datasets import cifar

    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5: os.path.exists(path))  # ours have other checksums
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    pictures = np.stack([picture(i, 32, 32) for i in range(60)])
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        part = pictures[10 * number : 10 * number + 10]
        (base / name).write_bytes(pickle.dumps({"data": part.transpose(0, 3, 1, 2).reshape(10, -1), "labels": [*range(10)]}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    source = open_source("CIFAR10", tmp_path)
    assert source.classes[3] == "class 3"
    assert [i.split for i in source.items] == ["train"] * 50 + ["test"] * 10
    assert (np.asarray(source.read(source.items[57])) == pictures[57]).all()


def test_eurosat_has_no_split_and_consists_of_files(tmp_path):
    make_folder(tmp_path / "eurosat" / "2750", {"River": 2, "Forest": 3}, suffix=".jpg")
    source = open_source("eurosat", tmp_path)
    assert source.classes == ("Forest", "River")
    assert source.read is None
    assert source.fingerprint is None
    assert [(i.name, i.split) for i in source.items][:1] == [("eurosat/2750/Forest/0.jpg", None)]
    assert all(item.path.is_file() and item.path.parent.name == source.classes[item.label] for item in source.items)


def test_pets_of_which_trainval_is_for_training(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    lines = {
        "trainval": [("Abyssinian_1", 1), ("great_pyrenees_7", 2), ("Abyssinian_2", 1)],
        "test": [("great_pyrenees_9", 2), ("Abyssinian_3", 1)],
    }
    (base / "annotations").mkdir(parents=True)
    for split, rows in lines.items():
        (base / "annotations" / f"{split}.txt").write_text("".join(f"{name} {label} 1 1\n" for name, label in rows))
        for seed, (name, _) in enumerate(rows):
            write(base / "images" / f"{name}.jpg", seed)
    source = open_source("OxfordIIITPet", tmp_path)
    assert source.classes == ("Abyssinian", "Great Pyrenees")
    assert [(i.path.stem, i.split, source.classes[i.label]) for i in source.items] == [
        ("Abyssinian_1", "train", "Abyssinian"),
        ("Abyssinian_2", "train", "Abyssinian"),
        ("great_pyrenees_7", "train", "Great Pyrenees"),
        ("Abyssinian_3", "test", "Abyssinian"),
        ("great_pyrenees_9", "test", "Great Pyrenees"),
    ]


def test_textures_have_three_splits(tmp_path):
    base = tmp_path / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for i, split in enumerate(("train", "val", "test")):
        names = [f"{name}/{name}_{i}.jpg" for name in ("dotted", "banded")]
        (base / "labels" / f"{split}1.txt").write_text("\n".join(names) + "\n")
        for name in names:
            write(base / "images" / name, i)
    source = open_source("DTD", tmp_path)
    assert [(i.name, i.split, i.label) for i in source.items][2:4] == [
        ("dtd/dtd/images/banded/banded_1.jpg", "val", 0),
        ("dtd/dtd/images/dotted/dotted_1.jpg", "val", 1),
    ]


def test_imagenette_takes_the_first_of_a_classs_names(tmp_path):
    for split in ("train", "val"):
        make_folder(tmp_path / "imagenette2" / split, {"n01440764": 2, "n02102040": 1}, suffix=".jpeg")
    source = open_source("imagenette", tmp_path)
    assert source.classes == ("tench", "English springer")
    assert {i.split for i in source.items} == {"train", "val"}


@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io:pytest.PytestUnraisableExceptionWarning")  # it leaves files to the collector
def test_caltech_is_read_by_torchvision(tmp_path):
    base = tmp_path / "caltech101" / "101_ObjectCategories"
    (base / "BACKGROUND_Google").mkdir(parents=True)
    for name in ("ant", "bass"):
        for i in (1, 2):
            write(base / name / f"image_{i:04d}.jpg", seed=i)
    source = open_source("Caltech101", tmp_path)
    assert source.classes == ("ant", "bass")
    assert [(i.name, i.split, i.label) for i in source.items] == [("0", None, 0), ("1", None, 0), ("2", None, 1), ("3", None, 1)]
    image = source.read(source.items[3])
    assert image.size == (40, 30)
    image.load()


class Kept:
    """A set of three that says what its labels are."""

    def __init__(self, yielded, **attributes):
        self.yielded = yielded
        vars(self).update(attributes)

    def __len__(self):
        return len(self.yielded)

    def __getitem__(self, i):
        return None, self.yielded[i]


def test_labels_are_taken_from_where_a_set_keeps_them():
    asked = []
    for attributes in ({"targets": np.array([1, 0, 1])}, {"_labels": [1, 0, 1]}, {"_samples": [("a", 1), ("b", 0), ("c", 1)]}):
        assert labels_of(Kept([1, 0, 1], **attributes), asked.append) == [1, 0, 1]
    assert asked == []
    for attributes in ({}, {"targets": [[1, 2], [0, 2], [1, 2]]}, {"targets": [0, 0, 1]}, {"y": [1, 0]}, {"labels": None}):
        assert labels_of(Kept([1, 0, 1], **attributes), asked.append) == [1, 0, 1]
    assert asked == [1, 2, 3] * 5
    with pytest.raises(TypeError):
        labels_of(Kept([1.0, 0.0]), asked.append)
    assert classes_of(Kept([0])) is None
    assert files_of(Kept([0], samples=[("a.png", 0), ("b.png", 0)])) is None


def test_without_files_or_network_the_error_says_how_to_bring_them(tmp_path, no_network, capsys):
    said = []
    with pytest.raises(FixSetup) as caught:
        open_source("CIFAR100", tmp_path / "sets", lambda *told: said.append(told))
    message = str(caught.value)
    assert said == [(f"Downloading CIFAR100 to {tmp_path / 'sets'}", 0, 1)]
    for part in (
        f"CIFAR100 was not found in {tmp_path / 'sets'}",
        "refused",
        "from torchvision.datasets import CIFAR100;",
        f"CIFAR100('{tmp_path / 'sets'}', train=False, download=True)",
        "data_root",
    ):
        assert part in message
    assert capsys.readouterr() == ("", "")


@pytest.mark.process
def test_the_line_that_the_error_gives_is_one_that_python_runs(tmp_path, no_network):
    with pytest.raises(FixSetup) as caught:
        open_source("STL10", tmp_path)
    code = str(caught.value).split('python -c "')[1].split('"')[0]
    done = run_command([sys.executable, "-c", code])
    assert "Connection refused" in done.stderr.splitlines()[-1]
