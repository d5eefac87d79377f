"""Labelled images are found in folders, tables and functions, and what cannot be used is explained."""

import os
import shutil
import sys
import tempfile
import textwrap
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import make_folder, write
from PIL import Image

from hpsearch.errors import FixInput
from hpsearch.finetune.prepare import prepare
from hpsearch.finetune.printable import printable
from hpsearch.finetune.sources import DATA_SETS, open_source
from hpsearch.spec import load_spec
from tests.support.commands import run_command


def counts(source):
    """(split, class) -> items."""
    return dict(Counter((item.split, source.classes[item.label]) for item in source.items))


def refused(data, *parts):
    with pytest.raises(FixInput) as caught:
        open_source(str(data))
    message = str(caught.value)
    for part in parts:
        assert part in message
    return message


# ---------------------------------------------------------------- folders


def test_a_folder_with_one_sub_folder_a_class(folder):
    make_folder(folder / "pets", {"dog": 3, "cat": 2})
    write(folder / "pets" / "dog" / "more" / "deep.JPEG", seed=9)
    (folder / "pets" / "dog" / "notes.txt").write_text("notes")
    (folder / "pets" / ".git" / "x").mkdir(parents=True)
    write(folder / "pets" / ".git" / "x" / "1.png", seed=1)
    write(folder / "pets" / "cat" / ".hidden.png", seed=1)
    write(folder / "pets" / "stray.png", seed=1)
    (folder / "pets" / "bird").mkdir()
    source = open_source("pets")
    assert source.classes == ("cat", "dog")
    assert [item.name for item in source.items] == [
        "cat/0.png",
        "cat/1.png",
        "dog/0.png",
        "dog/1.png",
        "dog/2.png",
        "dog/more/deep.JPEG",
    ]
    assert [item.label for item in source.items] == [0, 0, 1, 1, 1, 1]
    assert all(item.path.is_file() and item.split is None for item in source.items)
    assert source.empty_classes == ("bird",)
    assert source.read is None
    assert "1 image outside any class folder was ignored: stray.png" in source.notes
    assert "1 file that is no image was ignored: dog/notes.txt" in source.notes


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "VALID", "testing"), ("train", "validation"), ("train", "dev")])
def test_a_folder_with_splits(folder, names):
    for i, name in enumerate(names):
        make_folder(folder / "pets" / name, {"dog": 3 - i, "cat": 2, **({"owl": 1} if i == 0 else {})})
    make_folder(folder / "pets" / "extra", {"dog": 2})
    source = open_source("pets")
    splits = ("train", "val", "test")[: len(names)]
    expected = {(s, c): n for i, s in enumerate(splits) for c, n in (("cat", 2), ("dog", 3 - i))}
    assert counts(source) == {**expected, ("train", "owl"): 1}
    assert any("extra" in note for note in source.notes)
    assert source.items[0].name == f"{names[0]}/cat/0.png"


def test_a_class_that_has_no_training_images_is_named(folder):
    make_folder(folder / "train", {"dog": 2, "cat": 2})
    make_folder(folder / "val", {"dog": 2, "owl": 1})
    refused(folder, "no training images of 'owl'")


def test_classes_named_by_numbers_are_in_the_order_of_the_numbers(folder):
    make_folder(folder / "d", {str(n): 1 for n in (10, 9, 100, 0)})
    assert open_source("d").classes == ("0", "9", "10", "100")


def test_links_are_followed_and_loops_survived(folder):
    make_folder(folder / "store", {"dog": 2})
    make_folder(folder / "d", {"cat": 1})
    (folder / "d" / "dog").symlink_to(folder / "store" / "dog")
    (folder / "d" / "cat" / "again").symlink_to(folder / "d")
    (folder / "d" / "cat" / "self").symlink_to("self")
    (folder / "d" / "cat" / "gone.png").symlink_to("nowhere.png")
    source = open_source("d")
    names = [item.name for item in source.items]
    assert {"cat/0.png", "cat/gone.png", "dog/0.png", "dog/1.png"} <= set(names)
    assert len(names) < 10


def test_any_file_name(folder):
    names = ["with space.png", "new\nline.png", "grüße-猫.png", "'quote\".png"]
    for i, name in enumerate(names):
        write(folder / "d" / "a b" / name, seed=i)
    os.makedirs(b"d/\xff")
    shutil.copy(folder / "d" / "a b" / names[0], b"d/\xff/\xfe.png")
    source = open_source("d")
    assert {item.name for item in source.items} == {
        *(f"a b/{name}" for name in names if "\n" not in name),
        "a b/new\\nline.png",
        "\\xff/\\xfe.png",
    }
    assert source.classes == ("\\xff", "a b")
    assert all(item.path.exists() and item.name.encode() for item in source.items)


def test_folders_that_will_not_do(folder):
    (folder / "empty").mkdir()
    refused("empty", "no images", "cat/1.jpg")
    write(folder / "flat" / "1.png", seed=1)
    refused("flat", "1 image and no class folders", "flat/cat/1.jpg")
    make_folder(folder / "one", {"cat": 3})
    refused("one", "one class with images ('cat')")
    make_folder(folder / "nested" / "train", {"cat": 3, "dog": 2})
    refused("nested", "Did you mean nested/train?")
    write(folder / "half" / "train" / "1.png", seed=1)
    make_folder(folder / "half" / "val", {"cat": 3, "dog": 2})
    refused("half", "half/train has 1 image and no class folders")


@pytest.mark.process
def test_a_folder_that_may_not_be_read():
    with tempfile.TemporaryDirectory() as name:  # beside pytest's own folder, which only its owner may enter
        folder = make_folder(Path(name), {"cat": 1, "dog": 1})
        folder.chmod(0o755)
        (folder / "dog").chmod(0)
        code = textwrap.dedent(f"""
            import os
            from hpsearch.finetune.sources import open_source
            if os.getuid() == 0:
                os.setuid(65534)
            try:
                open_source({name!r})
            except Exception as error:
                print(type(error).__name__, error)
        """)
        done = run_command([sys.executable, "-c", code], check=True)
    assert done.stdout.startswith("FixInput the folder")
    assert "dog cannot be read (Permission denied)" in done.stdout


# ---------------------------------------------------------------- what is no data at all


def test_a_word_or_path_that_leads_nowhere_gets_a_hint(folder):
    make_folder(folder / "photos", {"cat": 1, "dog": 1})
    refused("photo/cat", "did you mean", "photos'?")
    refused(folder / "photos" / "catt", f"did you mean '{folder}/photos/cat'?")
    refused("CIFAR", "did you mean 'cifar10'?", "FGVCAircraft")
    refused("zzz/yyy", f"no 'zzz' in {folder}", *DATA_SETS)
    (folder / "three").mkdir()
    refused("nothere", f"no 'nothere' in {folder}.")
    refused("", "there is no data ''")
    refused("x" * 5000, "cannot be used as data")
    refused("a\0b", "there is no data")


def test_a_file_that_is_no_table(folder):
    refused(write(folder / "1.png", seed=1), "is one image")
    (folder / "a.zip").touch()
    refused("a.zip", "unpack it")
    (folder / "a.docx").touch()
    refused("a.docx", "neither a folder nor a table")


# ---------------------------------------------------------------- tables


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", [("path", "label", "split"), ("Filename", "CLASS", "Subset"), ("image_path", "category", "set")])
def test_a_text_table(folder, header, delimiter, encoding):
    rows = [
        header,
        ("a/1.png", "dog", "train"),
        ("a/2.png", "cat", "training"),
        (str(folder / "b.png"), "dog", "Dev"),
        ("ü, ö.png", "cat", "test"),
    ]
    lines = [delimiter.join(f'"{cell}"' for cell in row) for row in rows]
    write(folder / "in" / "a" / "1.png", seed=1)
    (folder / "in" / "t.csv").write_text("\n\n".join(lines), encoding=encoding)
    source = open_source("in/t.csv")
    assert source.classes == ("cat", "dog")
    assert [(i.name, source.classes[i.label], i.split) for i in source.items] == [
        ("a/1.png", "dog", "train"),
        ("a/2.png", "cat", "train"),
        (str(folder / "b.png"), "dog", "val"),
        ("ü, ö.png", "cat", "test"),
    ]
    assert [os.path.abspath(i.path) for i in source.items[1:3]] == [str(folder / "in" / "a" / "2.png"), str(folder / "b.png")]


def test_a_parquet_table_says_the_same_as_the_text(folder):
    import pyarrow
    from pyarrow import parquet

    write(folder / "1.png", seed=1)
    table = pyarrow.table({"id": [7, 8, 9], "File": ["1.png", "2.png", "3.png"], "target": [10, 9, 10]})
    parquet.write_table(table, "t.parquet")
    (folder / "t.csv").write_text("id,File,target\n7,1.png,10\n8,2.png,9\n9,3.png,10\n")
    one, other = open_source("t.parquet"), open_source("t.csv")
    assert one.items == other.items
    assert one.classes == other.classes == ("9", "10")
    parquet.write_table(pyarrow.table({"path": ["1.png", "2.png"], "label": ["a", None]}), "t.parquet")
    refused("t.parquet", "row 2: the label is empty")
    parquet.write_table(pyarrow.table({"path": ["1.png"], "lable": ["a"]}), "t.parquet")
    refused("t.parquet", "no column 'label': found 'path'")
    (folder / "t.parquet").write_bytes(b"PAR1 not really")
    refused("t.parquet", "not a Parquet file")


def test_tables_with_mistakes_name_the_line(folder):
    write(folder / "1.png", seed=1)

    def table(text, *parts):
        (folder / "t.csv").write_text(text)
        refused("t.csv", *parts)

    table("path,label\n1.png,a\n2.png,\n", "line 3: the label is empty")
    table("path,label\n,a\n", "line 2: the path is empty")
    table("path,label\n1.png\n", "line 2: the label is empty")
    table("path,label,split\n1.png,a,train\n2.png,b,trian\n", "line 3: 'trian' is no split", "train, training, val")
    table("path,label,split\n1.png,a,\n", "line 2: '' is no split")
    table("path,lable\n1.png,a\n", "no column 'label': found 'path', 'lable'. 'lable': did you mean 'label'? Call it one of label")
    table("1.png,a\n2.png,b\n", "no column 'path': found '1.png', 'a'. Is there a header line? Call it one of path")
    table("", "no column 'path': found none")
    table("path,label\n", "has columns but no images")
    table("path,label\n1.png,a\nx/../1.png,b\n", "the label 'a' in line 2 and 'b' in line 3")
    table("path,label,split\n1.png,a,train\n1.png,a,val\n", "the split 'train' in line 2 and 'val' in line 3")
    table("path,label\n1.png,a\n2.png,a\n", "one class with images ('a')")
    table("path,label,split\n1.png,a,train\n2.png,b,val\n", "no training images of 'b'")
    (folder / "t.csv").write_bytes("path,label\n1.png,Bär\n".encode("latin-1"))
    refused("t.csv", "not UTF-8")
    (folder / "t.csv").write_bytes(b"path,label\n\0,a\n")
    refused("t.csv", "line 2: the path contains a null byte")
    table('path,label\n1.png,"' + "x" * 200_000 + '"\n', "not a CSV table")


def test_a_repeated_line_is_taken_once(folder):
    write(folder / "1.png", seed=1)
    (folder / "t.tsv").write_text("path\tlabel\n1.png\ta\n2.png\tb\n./1.png\ta\n")
    source = open_source("t.tsv")
    assert [item.name for item in source.items] == ["1.png", "2.png"]
    assert source.notes == ("1 repeated line was taken once",)


# ---------------------------------------------------------------- functions


@pytest.fixture
def module(folder):
    """Writes a module with this text into the working folder; gives its name."""
    names = []

    def write_module(text):
        names.append(f"own_module_{len(names)}_{folder.name.replace('-', '_')}")
        (folder / f"{names[-1]}.py").write_text("import numpy as np\n" + textwrap.dedent(text))
        return names[-1]

    path = [*sys.path]
    yield write_module
    sys.path[:] = path
    for name in names:
        sys.modules.pop(name, None)


PAIRS = """
    class Pairs:
        def __init__(self, labels, seed=0, **attributes):
            self.kept, self.seed = labels, seed
            vars(self).update(attributes)
        def __len__(self):
            return len(self.kept)
        def __getitem__(self, i):
            return np.full((5, 6, 3), 10 * self.seed + i, dtype=np.uint8), self.kept[i]
"""


def test_a_function_of_ones_own(module):
    name = module(PAIRS + "    \n    def make():\n        return Pairs([2, 0, 2], classes=['x', 'y', 'z'], fingerprint='one')\n")
    source = open_source(f"{name}:make")
    assert source.classes == ("x", "z")
    assert source.empty_classes == ("y",)
    assert [(i.name, i.label, i.split, i.index) for i in source.items] == [("0", 1, None, 0), ("1", 0, None, 1), ("2", 1, None, 2)]
    assert source.fingerprint == "one"
    assert (source.read(source.items[2]) == 2).all()


def test_a_function_with_splits(module):
    name = module(
        PAIRS + "    \n    def make():\n        return {'Validation': Pairs([1, 0], 1), 'train': Pairs([0, np.int64(1), 5], 2)}\n"
    )
    source = open_source(f"{name}:make")
    assert source.classes == ("0", "1", "5")
    assert [i.name for i in source.items] == ["train/0", "train/1", "train/2", "val/0", "val/1"]
    assert [int(source.read(i)[0, 0, 0]) for i in source.items] == [20, 21, 22, 10, 11]
    assert source.fingerprint is None


ROTATIONS = """
    from torchvision.datasets import ImageFolder
    from torch.utils.data import ConcatDataset, Subset

    class Around:
        def __init__(self, inner):
            self.inner = inner
        def __len__(self):
            return len(self.inner)
        def __getitem__(self, i):
            return self.inner[i]

    def folders():
        return {"train": ImageFolder("r/train"), "val": ImageFolder("r/val")}
    def parts():
        return {split: Subset(images, [len(images) - 1, 0]) for split, images in folders().items()}
    def joined():
        return ConcatDataset(list(folders().values()))
    def same():
        return ConcatDataset([ImageFolder("r/train"), ImageFolder("r/train")])
    def around():
        return {split: Around(images) for split, images in folders().items()}
    def half():
        return {**folders(), "val": Around(ImageFolder("r/val"))}
    def whole():
        return {**folders(), "val": Around(ImageFolder("r/train"))}
    def only_there():
        return {"train": ImageFolder("r/val"), "val": ImageFolder("r/train")}
"""


def test_each_split_counts_its_own_classes_and_they_are_matched_by_name(folder, module):
    make_folder(folder / "r" / "train", {"0": 2, "180": 2, "270": 2, "90": 2})
    make_folder(folder / "r" / "val", {"0": 1, "270": 2, "90": 3})
    name = module(ROTATIONS)
    source = open_source(f"{name}:folders")
    assert source.classes == ("0", "180", "270", "90")
    assert counts(source) == {**{("train", c): 2 for c in source.classes}, ("val", "0"): 1, ("val", "270"): 2, ("val", "90"): 3}
    for item in source.items:  # by the pixels, what the file's own folder says
        files = sorted((folder / "r" / item.split).rglob("*.png"))
        assert files[item.index].parent.name == source.classes[item.label]
    assert counts(open_source(f"{name}:parts")) == {("train", "90"): 1, ("train", "0"): 1, ("val", "90"): 1, ("val", "0"): 1}
    assert counts(open_source(f"{name}:same")) == dict.fromkeys([(None, c) for c in source.classes], 4)
    refused(f"{name}:joined", "joins data sets whose classes differ", "0, 180, 270, 90")
    refused(f"{name}:around", "made around data sets whose classes differ", "give each split a list `classes`")
    refused(f"{name}:half", "split 'val' does not name its classes", "give it a list `classes`")
    assert counts(open_source(f"{name}:whole")) == {(split, c): 2 for split in ("train", "val") for c in source.classes}
    refused(f"{name}:only_there", "no training images of '180'")


def test_a_list_of_pairs_with_tensors_will_do(module):
    name = module(
        "def make():\n        import torch\n        return [(torch.ones(3, 4, 5), torch.tensor(1)), (torch.zeros(3, 4, 5), 0)]".replace(
            "        ", "    "
        )
    )
    source = open_source(f"{name}:make")
    assert [i.label for i in source.items] == [1, 0]
    assert (source.read(source.items[0]) == 255).all()
    assert source.read(source.items[0]).shape == (4, 5, 3)


def test_labels_that_a_data_set_keeps_are_used_only_if_they_are_what_it_yields(module):
    name = module(PAIRS + "    \n    def make():\n        return Pairs([0, 1, 1], targets=[1, 0, 0])\n")
    assert [i.label for i in open_source(f"{name}:make").items] == [0, 1, 1]


def test_functions_that_will_not_do(module):
    def fails(body, *parts, function="make"):
        name = module(f"{PAIRS}\n    def make():\n        {body}\n")
        refused(f"{name}:{function}", *parts)

    refused("no_such_module_at_all:make", "importing 'no_such_module_at_all' failed")
    fails("return 1", "no function 'mkae': did you mean 'make'?", function="mkae")
    fails("return 1", "expected a data set of (image, label)", "int")
    fails("raise KeyError('x')", "the function failed", "KeyError: 'x'")
    fails("import sys; sys.exit(3)", "the function failed", "SystemExit: 3")
    fails("return {'trian': Pairs([0, 1])}", "'trian' is no split")
    fails("return {'val': Pairs([0, 1]), 'dev': Pairs([0, 1])}", "'dev' is no split, or one of two")
    fails("return Pairs([0, 1, 7], classes=['a', 'b'])", "image 2 has the label 7", "2 classes")
    fails("return Pairs([0, 1, -1])", "image 2 has the label -1")
    fails("return Pairs([0, 1.5])", "integer")
    fails("return Pairs(['cat', 'dog'])", "integer")
    fails("return Pairs([0, 1], classes=['a', 'a'])", "one name")
    fails("return [{'image': np.zeros((4, 4)), 'label': 0}] * 2", "yields a dictionary (image, label) instead of a pair")
    fails("return [('1.png', 0), ('2.png', 1)]", "a str instead of an image", "uint8 or float in [0, 1]")
    fails("return [(np.ones((4, 4)) * 3, 0), (np.ones((4, 4)), 1)]", "outside [0, 1]")
    fails("return [np.zeros((4, 4)), np.zeros((4, 4))]", "expected (image, label)")
    fails("return []", "no class with images")
    fails("return {}", "no class with images")
    name = module("def broken(:\n")
    refused(f"{name}:make", "SyntaxError")


def test_an_image_of_a_function_that_fails_later_is_unusable_not_fatal(module):
    from hpsearch.finetune.images import Unusable

    name = module("def make():\n    return [(np.zeros((4, 4), np.uint8), 0), ('no', 1), (np.zeros((4, 4), np.uint8), 1)]\n")
    source = open_source(f"{name}:make")
    with pytest.raises(Unusable, match="a str instead"):
        source.read(source.items[1])


def test_opening_a_folder_reads_no_image(folder):
    for i, name in enumerate("ab"):
        (folder / "d" / name).mkdir(parents=True)
        (folder / "d" / name / "1.jpg").write_bytes(bytes(i))
    assert [item.name for item in open_source("d").items] == ["a/1.jpg", "b/1.jpg"]


# ---------------------------------------------------------------- what a newcomer and an attacker found


def test_names_that_would_act_on_a_terminal_are_escaped_and_stay_apart(folder):
    classes = ["\x1b[31mred", "\\x1b[31mred", "a\u202eb", "line\nbreak", "\u2066x"]
    for i, name in enumerate(classes):
        write(folder / "d" / name / "\x07\x9b.png", seed=i)
    source = open_source("d")
    assert set(source.classes) == {"\\x1b[31mred", "\\\\x1b[31mred", "a\\u202eb", "line\\nbreak", "\\u2066x"}
    assert all(item.name.isprintable() and item.path.is_file() for item in source.items)
    assert {item.name.rpartition("/")[2] for item in source.items} == {"\\x07\\u009b.png"}
    write(folder / "1.png", seed=1)
    (folder / "t.csv").write_text('path,label\n1.png,"\x1b[2Ja"\n2.png,b\n')
    assert open_source("t.csv").classes == ("\\x1b[2Ja", "b")
    (folder / "t.csv").write_text("path,\x1b[2Jlabel\n1.png,a\n")
    assert refused("t.csv", "\\x1b[2Jlabel").isprintable()
    (folder / "\x1b[2J").mkdir()
    assert refused("\x1b[2J", "\\x1b[2J has no images").isprintable()


names = st.text(st.sampled_from("a\\xn1b\x1b\n\u202e\x85\udc85u"), max_size=8)


@given(names, names)
def test_different_names_are_shown_differently(one, other):
    assert (printable(one) == printable(other)) == (one == other)
    assert printable(one).isprintable()


@pytest.mark.parametrize("target", ["..", ".", "../dog", "../../..", "/"])
def test_a_link_that_leads_back_mislabels_nothing(folder, target):
    make_folder(folder / "d", {"cat": 2, "dog": 3})
    (folder / "d" / "cat" / "again").symlink_to(target)
    source = open_source("d")
    assert counts(source) == {(None, "cat"): 2, (None, "dog"): 3}
    assert "1 link to folders that are looked at anyway was ignored: cat/again" in source.notes


def test_a_link_to_a_class_is_no_class_and_two_to_one_store_count_once(folder):
    make_folder(folder / "store", {"owl": 2})
    make_folder(folder / "d", {"cat": 2, "dog": 3})
    (folder / "d" / "a").symlink_to("cat")
    (folder / "d" / "owl").symlink_to(folder / "store" / "owl")
    (folder / "d" / "dog" / "owls").symlink_to(folder / "store")
    source = open_source("d")
    assert counts(source) == {(None, "cat"): 2, (None, "dog"): 3, (None, "owl"): 2}
    assert "2 links to folders that are looked at anyway were ignored: a, dog/owls/owl" in source.notes
    make_folder(folder / "s" / "train", {"cat": 2, "dog": 3})
    (folder / "s" / "val").symlink_to("train")
    refused("s", "s/val is a link to s/train", "remove the link")


def test_splits_inside_the_classes_are_used(folder):
    for name, word in (("china", "val"), ("flower", "Valid")):
        make_folder(folder / "d" / name, {"train": 3, word: 2, "test": 1})
        write(folder / "d" / name / "train" / "deep" / "x.png", seed=1)
    (folder / "d" / "empty" / "train").mkdir(parents=True)
    source = open_source("d")
    per_class = {"train": 4, "val": 2, "test": 1}
    assert counts(source) == {(split, name): n for split, n in per_class.items() for name in ("china", "flower")}
    assert source.empty_classes == ("empty",)
    assert [item.split for item in source.items] == ["train"] * 8 + ["val"] * 4 + ["test"] * 2
    assert any(note.startswith("the folders test, train, val, Valid in every class were taken for splits") for note in source.notes)
    write(folder / "d" / "owl" / "1.png", seed=1)
    refused("d", "d/china holds splits (test, train, val) and d/owl does not", "d/china/train/1.jpg", "d/train/china/1.jpg")


def test_sub_folders_that_are_taken_together_are_told(folder):
    make_folder(folder / "d" / "animals", {"china": 1, "flower": 1, "tree": 1, "test": 1})
    make_folder(folder / "d", {"plants": 2})
    notes = open_source("d").notes
    assert notes == ("images of 4 sub-folders of 'animals' were taken together: china, flower, test, ...",)
    write(folder / "d" / "plants" / "more" / "1.png", seed=1)
    assert open_source("d").notes == (
        "images of sub-folders were taken together in 2 classes: 'animals' (china, flower, test, ...), 'plants' (more)",
    )


def test_a_folder_around_the_data_is_seen_through(folder):
    make_folder(folder / "photos" / "dataset", {"cat": 2, "dog": 2})
    refused("photos", "one class with images ('dataset')", "Did you mean photos/dataset?")
    for split in ("train", "val"):
        make_folder(folder / "deep" / "a" / "my_set" / split, {"cat": 2, "dog": 2})
    refused("deep", "Did you mean deep/a/my_set?")
    make_folder(folder / "one" / "cat", {"train": 2, "val": 2})
    assert "Did you mean" not in refused("one", "one class with images ('cat')")


def test_classes_called_train_and_test_are_told_what_they_were_taken_for(folder):
    make_folder(folder / "d", {"bus": 2, "train": 2, "test": 2})
    refused("d", "d/train has 2 images and no class folders", "If 'train' is a class and no split, rename its folder", "use a table")


def test_classes_that_look_alike_are_named(folder):
    make_folder(folder / "d" / "train", {"noise": 2, "cat": 2})
    make_folder(folder / "d" / "val", {"Noise": 2, "cat": 2})
    refused("d", "no training images of 'Noise'", "Is 'Noise' the same class as 'noise'? Then give both one name")
    write(folder / "1.png", seed=1)
    (folder / "t.csv").write_text("path,label\n1.png,CHINA\n2.png,china\n3.png,flower\n")
    assert "differ only in case, blanks or how a number is written: 'CHINA' and 'china'. Are they one?" in open_source("t.csv").notes[0]
    (folder / "t.csv").write_text("path,label,split\n1.png,1,train\n2.png,02,train\n3.png,1.0,val\n4.png,1,val\n")
    refused("t.csv", "no training images of '1.0'", "Is '1.0' the same class as '1'?")


def test_kinds_of_images_that_are_not_read_are_items_and_bad(folder):
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    for name in ("cat/1.heic", "cat/2.HEIC", "dog/1.heif"):
        (folder / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "d" / name).write_bytes(heic)
    (folder / "d" / "dog" / "notes.txt").write_text("notes")
    assert len(open_source("d").items) == 3
    with pytest.raises(FixInput, match=r"none of the 3 images in d can be used: cat/1.heic: HEIC cannot be read; convert to JPEG"):
        prepare({**load_spec(None, (), {"data": "d"}).resolved(), "model": None})


def test_tables_as_people_have_them(folder):
    import pyarrow
    from pyarrow import parquet

    write(folder / "1.png", seed=1)

    def table(text):
        (folder / "t.csv").write_text(text)
        return "t.csv"

    long = ",".join(["x" * 200] * 30)
    assert len(refused(table(f"{long}\n1.png\n"), "and 20 more", "x" * 77 + "...'")) < 1500
    refused(table("path,label\nhttps://example.org/1.png,a\n"), "line 2: https://example.org/1.png is a URL", "download the images")
    refused(table("path,label\nno/2.png,a\n3.png,b\n"), "none of the 2 files in t.csv", "no/2.png", f"own folder, {folder}")
    source = open_source(table("img,species,fold\n1.png,a,0\n2.png,b,1\n"))
    assert {item.split for item in source.items} == {None}
    assert source.notes == ("the column 'fold' was ignored: it names no splits",)
    source = open_source(table("img,breed,set\n1.png,a,0\n2.png,b,1\n"))
    assert source.notes == ("the column 'set' was ignored: it has no word for a split, such as train",)
    source = open_source(table("images,y,partition\n1.png,a,train\n2.png,b,train\n3.png,b,val\n"))
    assert [item.split for item in source.items] == ["train", "train", "val"]
    for values in ([{"bytes": b"1", "path": "1.png"}], [b"1"]):
        parquet.write_table(pyarrow.table({"image": values, "label": [1]}), "t.parquet")
        refused("t.parquet", "the column 'image' holds images themselves", "Hugging Face", "package.module:function")


# ---------------------------------------------------------------- layouts that are seen through, or refused


@pytest.mark.parametrize(
    "names", [("training_set", "test_set"), ("Train", "TestImages"), ("seg_train", "seg_test"), ("trainset", "PublicTest")]
)
def test_folders_called_something_like_splits_that_hold_the_same_classes_are_splits(folder, names):
    make_folder(folder / "d" / names[0], {"cats": 3, "dogs": 2})
    make_folder(folder / "d" / names[1], {"cats": 1, "dogs": 2})
    source = open_source("d")
    assert counts(source) == {("train", "cats"): 3, ("train", "dogs"): 2, ("test", "cats"): 1, ("test", "dogs"): 2}
    assert any(note.startswith("folders were taken for splits, since they hold the same classes") for note in source.notes)


def test_classes_whose_names_speak_of_splits_stay_classes(folder):
    make_folder(folder / "d", {"train_station": 3, "test_strip": 2})
    assert counts(open_source("d")) == {(None, "train_station"): 3, (None, "test_strip"): 2}
    write(folder / "d" / "train_station" / "day" / "1.png", seed=1)
    write(folder / "d" / "test_strip" / "blue" / "1.png", seed=2)
    assert counts(open_source("d")) == {(None, "train_station"): 4, (None, "test_strip"): 3}


def test_splits_without_one_for_training_are_refused_with_the_remedy(folder):
    for name in ("valid", "test"):
        make_folder(folder / "d" / name, {"a": 2, "b": 2})
    refused(folder / "d", "the splits 'test' and 'valid', and none is for training", "call the folder to learn from 'train'", "d/test")


@pytest.mark.parametrize("inner", [("training", "validation"), ("images", "images")])
def test_a_folder_between_a_split_and_its_classes_is_seen_through(folder, inner):
    make_folder(folder / "d" / "training" / inner[0], {"n0": 3, "n1": 2})
    make_folder(folder / "d" / "validation" / inner[1], {"n0": 1, "n1": 2})
    source = open_source("d")
    assert counts(source) == {("train", "n0"): 3, ("train", "n1"): 2, ("val", "n0"): 1, ("val", "n1"): 2}
    assert f"the class folders were found in training/{inner[0]}, validation/{inner[1]}" in source.notes


def test_the_layout_of_tiny_imagenet_is_read_with_its_text_of_labels(folder):
    for name in ("n01", "n02"):
        make_folder(folder / "d" / "train" / name, {"images": 3})
        (folder / "d" / "train" / name / f"{name}_boxes.txt").write_text("n01_0.JPEG\t0\t0\t62\t62\n")
    make_folder(folder / "d" / "val", {"images": 4}, prefix="val_")
    make_folder(folder / "d" / "test", {"images": 2})
    refused(folder / "d", "d/val has 4 images and no folders named as the classes in training (n01, n02)", "d/val/n01/1.jpg")
    lines = [f"val_{i}.png\tn0{1 + i % 2}\t0\t0\t62\t62\n" for i in range(4)]
    (folder / "d" / "val" / "val_annotations.txt").write_text("".join(lines))
    source = open_source("d")
    assert counts(source) == {("train", "n01"): 3, ("train", "n02"): 3, ("val", "n01"): 2, ("val", "n02"): 2}
    assert {item.name: source.classes[item.label] for item in source.items if item.split == "val"} == {
        f"val/images/val_{i}.png": f"n0{1 + i % 2}" for i in range(4)
    }
    assert "the classes of the images in val were read from val/val_annotations.txt" in source.notes
    assert any("2 images in test without a label" in note for note in source.notes)


def test_unlabelled_test_images_are_left_out_and_offered_to_predict(folder):
    make_folder(folder / "d" / "train", {"ok": 3, "nok": 2})
    for place in ("test/1.png", "test/unknown/1.png"):  # loose, and in one folder that is no class
        shutil.rmtree(folder / "d" / "test", ignore_errors=True)
        write(folder / "d" / place, seed=1)
        source = open_source("d")
        assert counts(source) == {("train", "ok"): 3, ("train", "nok"): 2}
        assert (
            len([note for note in source.notes if "1 image in test without a label" in note and "`hpsearch predict MODEL d/test`" in note])
            == 1
        )


def test_a_test_folder_with_a_class_of_another_spelling_is_not_taken_for_unlabelled(folder):
    make_folder(folder / "d" / "train", {"ok": 3, "nok": 2})
    make_folder(folder / "d" / "test", {"OK": 2})
    refused("d", "no training images of 'OK'", "Is 'OK' the same class as 'ok'?")


def test_a_table_beside_class_folders_that_is_no_metadata_changes_nothing(folder):
    make_folder(folder / "d", {"cat": 2, "dog": 2})
    for text in (b"\xff\xfe", b"name,size\n1,2\n", b""):
        (folder / "d" / "metadata.csv").write_bytes(text)
        (folder / "d" / "metadata.jsonl").write_bytes(text)
        assert counts(open_source("d")) == {(None, "cat"): 2, (None, "dog"): 2}
        assert open_source("d").notes == ("2 files that are no images were ignored: metadata.csv, metadata.jsonl",)


def test_folders_that_hold_folders_of_the_same_names_are_refused_with_the_remedy(folder):
    for name in ("2019", "2020"):
        make_folder(folder / "d" / name, {"cat": 2, "dog": 2})
    refused(
        folder / "d",
        "every folder in",
        "(2019, 2020) holds folders of the same names (cat, dog)",
        "call the outer ones train, val and test",
    )


def test_what_systems_keep_beside_images_is_neither_counted_nor_told(folder):
    make_folder(folder / "d", {"cat": 2, "dog": 2})
    for place in (
        "@eaDir/0.png",
        "cat/@eaDir/0.png",
        "dog/.thumbnails",
        "dog/.ipynb_checkpoints",
        "__MACOSX",
        "$RECYCLE.BIN",
        "lost+found",
        ".Trash-1000",
    ):
        write(folder / "d" / place / "SYNOFILE_THUMB_M.png", seed=1)
    for name in ("cat/Thumbs.db", "cat/desktop.ini", "dog/.DS_Store", "dog/._0.png"):
        (folder / "d" / name).write_bytes(b"x")
    source = open_source("d")
    assert counts(source) == {(None, "cat"): 2, (None, "dog"): 2}
    assert (source.notes, source.remarks) == ((), ())


def test_images_that_are_left_out_for_their_names_are_told_with_the_remedy(folder):
    make_folder(folder / "d", {"asp": 2, "java": 2, ".net": 3})
    shutil.copy(folder / "d" / "asp" / "0.png", folder / "d" / "asp" / "0001")
    shutil.copy(folder / "d" / "asp" / "0.png", folder / "d" / "asp" / "0002.image")
    shutil.copy(folder / "d" / "asp" / "0.png", folder / "d" / "asp" / ".1.png")
    (folder / "d" / "java" / "1.dcm").write_bytes(bytes(128) + b"DICM" + bytes(100))
    Image.new("RGB", (32, 32)).save(folder / "d" / "java" / "1.ico")
    Image.new("RGB", (32, 32)).save(folder / "d" / "java" / "1.tga")
    (folder / "d" / "java" / "notes").write_text("mine")
    source = open_source("d")
    assert counts(source) == {(None, "asp"): 2, (None, "java"): 2}
    assert source.notes == ("1 file that is no image was ignored: java/notes",)
    assert sorted(remark.text for remark in source.remarks) == [
        ".net (3 images), asp/.1.png have names that begin with a dot and were left out. Rename them if they belong to the data.",
        "1 file was left out (java/1.dcm): DICOM cannot be read; convert to PNG.",
        "1 file was left out (java/1.ico): ICO cannot be read; convert to PNG.",
        "1 file was left out (java/1.tga): TGA cannot be read; convert to PNG.",
        "2 PNG images without an ending that says so were left out (asp/0001, asp/0002.image): give them the ending .png.",
    ]
    assert {remark.level for remark in source.remarks} == {"warning"}
    report = prepare({**load_spec(None, (), {"data": "d"}).resolved(), "model": None}).report
    assert len([finding for finding in report.findings if finding.kind == "left-out"]) == 5


def test_a_folder_without_an_image_says_what_there_is_instead(folder):
    for name in ("benign", "malignant"):
        (folder / "d" / name).mkdir(parents=True)
        (folder / "d" / name / "1.npy").write_bytes(b"\x93NUMPY\1\0" + bytes(100))
    refused("d", "d has no images", "2 files were left out (benign/1.npy, malignant/1.npy): NumPy array cannot be read; convert to PNG")
    os.mkfifo(folder / "d" / "benign" / "pipe")
    refused("d", "d has no images")


# ---------------------------------------------------------------- what tables say


@pytest.fixture
def table(folder):
    """Writes a table beside twenty images img/000.jpg to img/019.jpg, cats and dogs in turn; gives its name."""
    for i in range(20):
        write(folder / "img" / f"{i:03d}.jpg", seed=i)

    def write_table(header, row, name="t.csv"):
        lines = [header, *(row(i, "cat" if i % 2 else "dog") for i in range(20))]
        (folder / name).write_text("\n".join(lines) + "\n")
        return name

    return write_table


def splits(source):
    return dict(Counter(item.split for item in source.items))


@pytest.mark.parametrize(
    ("column", "cell", "expected", "said"),
    [
        ("is_valid", lambda i: i >= 14, {"train": 14, "val": 6}, "validation where it is true, training where"),
        ("isTest", lambda i: int(i >= 14), {"train": 14, "test": 6}, "test where it is true"),
        ("is_training_image", lambda i: int(i < 14), {"train": 14, "test": 6}, "training where it is true, test where"),
        ("phase", lambda i: "training" if i < 14 else "dev", {"train": 14, "val": 6}, "it holds dev, training"),
        ("Usage", lambda i: "Training" if i < 14 else "PublicTest", {"train": 14, "test": 6}, "it holds PublicTest, Training"),
        ("fold", lambda i: "train" if i < 14 else "val2017", {"train": 14, "val": 6}, "it holds train, val2017"),
        ("is_valid", lambda i: "", {None: 20}, "was ignored: it is true for no image"),
        ("kfold", lambda i: i % 5, {None: 20}, "was ignored: it names no splits"),
        ("phase", lambda i: ("train", "test", "holdout")[i % 3], {None: 20}, "beside words for splits it holds 'holdout'"),
        ("is_sharp", lambda i: i % 2, {None: 20}, None),
        ("status", lambda i: "valid", {None: 20}, None),
    ],
)
def test_a_column_that_tells_splits_is_known_by_what_is_in_it(table, column, cell, expected, said):
    source = open_source(table(f"path,label,{column}", lambda i, label: f"img/{i:03d}.jpg,{label},{cell(i)}"))
    assert splits(source) == expected
    assert len(source.notes) == (said is not None)
    assert said is None or (f"the column '{column}' was" in source.notes[0] and said in source.notes[0])


def test_the_columns_of_a_parquet_table_tell_splits_too(table):
    import pyarrow
    from pyarrow import parquet

    columns = {"path": [f"img/{i:03d}.jpg" for i in range(20)], "label": ["cat", "dog"] * 10}
    parquet.write_table(pyarrow.table({**columns, "is_valid": [i > 15 for i in range(20)], "picture": [b"x"] * 20}), "t.parquet")
    assert splits(open_source("t.parquet")) == {"train": 16, "val": 4}
    parquet.write_table(pyarrow.table({**columns, "phase": pyarrow.array(["train"] * 16 + ["test"] * 4).dictionary_encode()}), "t.parquet")
    assert splits(open_source("t.parquet")) == {"train": 16, "test": 4}


def test_two_columns_that_tell_splits_go_together_or_one_of_them_wins(table, folder):
    header = "path,label,is_valid,is_test"
    source = open_source(table(header, lambda i, label: f"img/{i:03d}.jpg,{label},{i > 16},{10 < i < 15}"))
    assert splits(source) == {"train": 13, "val": 3, "test": 4}
    refused(
        table(header, lambda i, label: f"img/{i:03d}.jpg,{label},{i > 5},{i > 16}"), "line 19: the image is marked for val and for test"
    )
    source = open_source(
        table("path,label,split,is_valid", lambda i, label: f"img/{i:03d}.jpg,{label},{'train' if i < 9 else 'val'},{i > 16}")
    )
    assert splits(source) == {"train": 9, "val": 11}
    assert source.notes == ("the column 'is_valid' was ignored: the column 'split' tells the splits",)


def test_splits_in_the_paths_of_a_table_are_used_and_told(folder):
    for i in range(4):
        write(folder / "x" / ("train" if i < 2 else "test") / f"{i}.png", seed=i)
    (folder / "t.csv").write_text("path,label\nx/train/0.png,a\nx/train/1.png,b\nx/test/2.png,a\nx/test/3.png,b\n")
    source = open_source("t.csv")
    assert splits(source) == {"train": 2, "test": 2}
    assert "the splits were taken from the folders in the paths" in source.notes[0]


@pytest.mark.parametrize(
    "written", ["img/{i:03d}", "img\\{i:03d}.jpg", " img/{i:03d}.jpg ", "img/{i:03d}.JPG", "img/{i:03d}.jpg\u00a0", "img\\{i:03d} "]
)
def test_paths_that_are_plainly_meant_are_repaired_and_it_is_told(table, folder, written):
    source = open_source(table("path,label", lambda i, label: f"{written.format(i=i)},{label}"))
    assert [item.name for item in source.items] == [f"img/{i:03d}.jpg" for i in range(20)]
    assert all(item.path.is_file() for item in source.items)
    assert source.notes[0].startswith("20 paths were repaired, since one file alone can be meant")
    write(folder / "img" / "000.png", seed=99)  # now two could be meant
    items = open_source("t.csv").items
    assert items[0].name == ("img/000.jpg" if ".jpg" in written.lower() else written.format(i=0))


def test_a_file_called_like_the_written_path_is_never_replaced(folder):
    for name in ("a .png", "a.png", "B.png", "b.png"):
        write(folder / name, seed=1)
    (folder / "t.csv").write_text('path,label\n"a .png",x\na.png,y\nB.png,x\nb.png,y\n')
    source = open_source("t.csv")
    assert [item.name for item in source.items] == ["a .png", "a.png", "B.png", "b.png"]
    assert source.notes == ()


@pytest.mark.parametrize(("written", "real"), [("data/img/{i:03d}.jpg", "img/000.jpg"), ("{i:03d}.jpg", "img/000.jpg")])
def test_paths_that_start_elsewhere_get_the_right_hint(table, written, real):
    refused(table("path,label", lambda i, label: f"{written.format(i=i)},{label}"), "none of the 20 files", f"write {real}")


def test_the_metadata_of_hugging_face_labels_the_images_beside_it(table, folder):
    import pyarrow
    from pyarrow import parquet

    shutil.copytree(folder / "img", folder / "d" / "train")
    shutil.copytree(folder / "img", folder / "d" / "test")
    write(folder / "d" / "train" / "extra.jpg", seed=50)
    table("file_name,label", lambda i, label: f"{i:03d}.jpg,{label}", "d/train/metadata.csv")
    source = open_source("d")
    assert counts(source) == {("train", "cat"): 10, ("train", "dog"): 10}
    assert source.notes[0] == "the labels were read from train/metadata.csv"
    assert "21 images that no table labels left out" in source.notes[1]
    assert "`hpsearch predict MODEL d/" in source.notes[1]
    (folder / "d" / "test" / "metadata.jsonl").write_text(
        '{"file_name": "000.jpg", "label": "dog"}\n\n{"file_name": "001.jpg", "label": "cat"}\n'
    )
    assert counts(open_source("d")) == {("train", "cat"): 10, ("train", "dog"): 10, ("test", "dog"): 1, ("test", "cat"): 1}
    shutil.rmtree(folder / "d")
    shutil.copytree(folder / "img", folder / "d")
    names, labels = [f"{i:03d}.jpg" for i in range(20)], ["cat" if i % 2 else "dog" for i in range(20)]
    parquet.write_table(pyarrow.table({"file_name": names, "label": labels}), "d/metadata.parquet")
    assert counts(open_source("d")) == {(None, "cat"): 10, (None, "dog"): 10}


def test_lines_of_json_that_will_not_do(folder):
    (folder / "t.jsonl").write_text("[1]\n")
    refused("t.jsonl", "line 1: expected an object")
    (folder / "t.jsonl").write_text("{'a': 1}\n")
    refused("t.jsonl", "not a text of one JSON object a line")


def remarks(source):
    return {remark.kind: remark.text for remark in source.remarks}


def test_labels_that_are_no_classes_are_named_as_what_they_are(table):
    source = open_source(table("path,label", lambda i, label: f"img/{i:03d}.jpg,{'nan' if i < 2 else label}"))
    assert "2 images with the label 'nan'" in remarks(source)["missing-labels"]
    source = open_source(table("path,label", lambda i, label: f"img/{i:03d}.jpg,{20 + i * 1.37:.2f}"))
    assert "20 different numbers (20.00, 21.37, 22.74, ...): this looks like regression" in remarks(source)["regression"]
    source = open_source(table("path,label", lambda i, label: f"img/{i:03d}.jpg,{i * 3}"))
    assert "regression" in remarks(source)
    for some in (["a|b", "a", "b"], ['"a, b"', '"b, c"', '"c, a"'], ["\"['a', 'b']\"", "\"['a']\"", "\"['b']\""]):
        source = open_source(table("path,label", lambda i, label, some=some: f"img/{i:03d}.jpg,{some[i % 3]}"))
        assert "this looks like multi-label data" in remarks(source)["multi-label"], some
    source = open_source(table("path,tags", lambda i, label: f"img/{i:03d}.jpg,{'clear primary' if i % 3 else 'haze water'}"))
    assert "2 classes are combinations of labels (clear primary, haze water)" in remarks(source)["multi-label"]


@pytest.mark.parametrize(
    "classes",
    [
        ("0", "1", "2"),
        ("1.0", "2.0", "3.0"),
        ("golden retriever", "golden eagle", "bald eagle"),
        ("cat, wild", "dog", "owl"),
        ("nano", "x", "y"),
    ],
)
def test_classes_with_odd_names_are_classes(table, classes):
    source = open_source(table("path,label", lambda i, label: f'img/{i:03d}.jpg,"{classes[i % 3]}"'))
    assert source.remarks == ()


def test_a_column_for_each_class_is_read_when_one_of_them_is_set(table):
    source = open_source(table("image_id,cat,dog,other", lambda i, label: f"img/{i:03d}.jpg,{i % 2},{(i + 1) % 2},0"))
    assert counts(source) == {(None, "cat"): 10, (None, "dog"): 10}
    refused(
        table("image_id,cat,dog", lambda i, label: f"img/{i:03d}.jpg,1,{i % 2}"),
        "line 3: the image is of several classes (cat, dog)",
        "multi-label",
    )
