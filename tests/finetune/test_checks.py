"""Every finding about data: when it is made, when it is not, and that it says what to do."""

import base64
import io
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp, norm
from sklearn.metrics import balanced_accuracy_score

from hpsearch.finetune import checks
from hpsearch.finetune.neighbours import Copies, Votes
from hpsearch.types import DataReport

RNG = np.random.default_rng(0)


def gathered(labels=None, **changes):
    """240 noisy images of two classes, divided 3:1:1 with nothing wrong about them."""
    labels = np.array([0, 1] * 120) if labels is None else np.array(labels)
    n = len(labels)
    third = {"train": np.arange(0, 3 * n // 5), "val": np.arange(3 * n // 5, 4 * n // 5), "test": np.arange(4 * n // 5, n)}
    statistics = np.random.default_rng(1).normal(0.5, 0.1, (n, 5)).astype(np.float32)
    images = RNG.integers(0, 256, (n, 3, 40, 40)).astype(np.uint8)
    classes = tuple("abcdefgh"[: int(labels.max()) + 1])
    names = [f"{classes[label]}/{i}.jpg" for i, label in enumerate(labels)]
    base = checks.Gathered(
        "photos", classes, "val_loss", names, labels, third, images, statistics, copies(n), (), 0.05, {}, (), ()
    )  # fmt: skip
    return replace(base, **changes)


def copies(n, exact=(), near=()):
    return Copies(tuple(exact), tuple(near), np.arange(n), n)


def found(g, votes=None, voters=None):
    voters = np.arange(len(g.labels)) if voters is None and votes is not None else np.zeros(0, int) if voters is None else voters
    report = checks.report(g, votes, voters, "no model was named")
    assert DataReport.from_json(json.loads(json.dumps(asdict(report)))) == report
    return report, {f.kind: f for f in report.findings}


def test_sound_data_has_nothing_but_notes():
    report, kinds = found(gathered())
    assert set(kinds) == {"labels", "resolution"} or set(kinds) == {"labels", "resolution", "shift"}
    assert {f.level for f in report.findings} <= {"note", "warning"}
    assert not report.refused
    assert report.counts == {"train": (72, 72), "val": (24, 24), "test": (24, 24)}
    assert report.facts["majority_share"] == 0.5
    assert "no model was named" in kinds["labels"].text


def test_files_that_cannot_be_used_are_named_and_counted_and_refused_above_the_limit():
    bad = [("a/1.jpg", "truncated"), ("a/2.jpg", "empty file"), ("b/3.jpg", "truncated")]
    report, kinds = found(gathered(bad=bad))
    assert report.left_out == 3
    assert kinds["unreadable"].level == "warning"
    assert "3 files (1.2 %) cannot be used and are left out: 2 truncated, 1 empty file" in kinds["unreadable"].text
    assert [e.names[0] for e in kinds["unreadable"].examples] == ["a/1.jpg", "a/2.jpg", "b/3.jpg"]
    assert "2 × 16-bit" in found(gathered(bad=[("a/1.tif", "16-bit TIFF")] * 2))[1]["unreadable"].text
    refused, kinds = found(gathered(bad=bad * 10))
    assert [f.kind for f in refused.refused] == ["unreadable"]
    assert "raise bad_files" in kinds["unreadable"].text
    assert not found(gathered(bad=bad * 10, bad_limit=0.2))[0].refused


def test_empty_classes_and_classes_missing_from_a_split_are_named():
    labels = np.array([0, 1] * 120)
    labels[:10], labels[-48:] = 2, 1  # class c only in training; no class a in the test images
    _, kinds = found(gathered(labels, empty_classes=("d", "e")))
    assert "2 classes without images left out: d, e" in kinds["empty-class"].text
    assert "No validation images of 1 class (c)" in kinds["no-val-images"].text
    labels = np.array([0, 1] * 120)
    labels[-50:] = 2
    report, kinds = found(gathered(labels))
    assert "No training images of 1 class (c)" in kinds["no-train-images"].text
    assert report.refused


def test_a_missing_validation_split_refuses_and_a_missing_test_split_warns():
    nothing = np.zeros(0, dtype=np.int64)
    base = gathered()
    report, kinds = found(replace(base, parts={**base.parts, "val": nothing}))
    assert kinds["no-validation"].level == "error"
    assert "resolution" not in kinds
    report, kinds = found(replace(base, parts={**base.parts, "test": nothing}))
    assert (kinds["no-test"].level, report.refused) == ("warning", ())


@pytest.mark.parametrize(
    ("objective", "level"), [("val_loss", "warning"), ("accuracy", "warning"), ("f1", "note"), ("balanced_accuracy", "note")]
)
def test_imbalance_names_the_metric_to_prefer_unless_it_is_the_objective(objective, level):
    _, kinds = found(gathered(([0] * 9 + [1]) * 30, objective=objective))
    assert kinds["imbalance"].level == level
    assert "9 to 1" in kinds["imbalance"].text
    assert "always guessing the largest is right in 90 %" in kinds["imbalance"].text
    assert ("prefer objective: balanced_accuracy or f1" in kinds["imbalance"].text) == (level == "warning")
    assert "imbalance" not in found(gathered([0, 0, 1] * 80))[1]


@pytest.mark.parametrize(
    ("rare", "objective", "level", "points"),
    [
        (1, "balanced_accuracy", "warning", 50),
        (2, "val_loss", "warning", 25),
        (9, "f1", "warning", 6),
        (12, "f1", None, 0),
        (24, "f1", None, 0),
    ],
)
def test_a_validation_image_that_carries_much_of_balanced_accuracy_is_told(rare, objective, level, points):
    """The points are those by which scikit-learn's balanced accuracy moves when that one image is got wrong."""
    base = gathered()
    labels = base.labels.copy()
    val = base.parts["val"]
    labels[val] = 0
    labels[val[:rare]] = 1
    _, kinds = found(replace(base, labels=labels, objective=objective))
    assert ("heavy-images" in kinds) == (level is not None)
    if level:
        text = kinds["heavy-images"].text
        wrong = labels[val].copy()
        wrong[0] = 0
        assert f"One validation image of 'b' is {100 * (1 - balanced_accuracy_score(labels[val], wrong)):.0f} points of balanced" in text
        assert f" is {points} points" in text
        assert f"since its class has {rare}: " in text
        assert "split.val" in text
        assert "--cv 3x5" in text
        assert kinds["heavy-images"].level == level


def test_few_validation_images_of_many_equal_classes_carry_little_each():
    _, kinds = found(gathered([0, 1, 2, 3, 4, 5, 6, 7] * 20))
    assert "heavy-images" not in kinds
    _, kinds = found(gathered([0, 1] * 20))  # few of both
    assert kinds["heavy-images"].level == "note"
    assert "and so few have 1 more" in kinds["heavy-images"].text
    labels = np.zeros(240, dtype=int)
    labels[[0, 1, 150]] = 1  # two to train on, one to validate on: three folds at most
    assert "(--cv 3x3)" in found(gathered(labels))[1]["heavy-images"].text


def test_copies_are_told_apart_by_where_they_lie():
    pairs = [(0, 2), (0, 150), (1, 200), (0, 1)]  # both training; training and validation; training and test; two labels
    report, kinds = found(gathered(copies=copies(240, pairs, [(4, 160)])))
    assert kinds["exact-copies-within"].count == 1
    assert kinds["exact-copies-across"].count == 2
    assert kinds["exact-copies-labels"].count == 2  # 0 and 1; 1 and 200
    assert kinds["near-copies-across"].level == "warning"
    assert "leakage" in kinds["near-copies-across"].text
    example = kinds["near-copies-across"].examples[0]
    assert example.names == ("a/4.jpg", "a/160.jpg")
    assert example.text == "a, training / a, validation"
    for uri in example.thumbnails:
        kind, _, payload = uri.partition(";base64,")
        assert kind in ("data:image/png", "data:image/jpeg")
        assert Image.open(io.BytesIO(base64.b64decode(payload))).size == (40, 40)
    assert [f.level for f in report.findings] == sorted((f.level for f in report.findings), key=["error", "warning", "note"].index)


def test_a_shift_between_training_and_validation_is_named_by_what_moved():
    base = gathered()
    moved = base.statistics.copy()
    moved[base.parts["val"], 2] += 0.3
    _, kinds = found(replace(base, statistics=moved))
    assert "brightness 0.489 against 0.779" in kinds["shift"].text
    assert "width" not in kinds["shift"].text
    assert "shift" not in found(base)[1]
    labels = base.labels.copy()
    labels[base.parts["val"][:40]] = 1
    assert "class shares differ by" in found(replace(base, labels=labels))[1]["shift"].text


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.lists(st.floats(-5, 5), min_size=1, max_size=40))
def test_the_distance_of_distributions_is_scipys(a, b):
    with np.errstate(divide="ignore"):  # in scipy's p-value, which is not used
        expected = ks_2samp(a, b, method="asymp").statistic
    assert checks.ks_statistic(np.array(a), np.array(b)) == pytest.approx(expected)


def votes_on(n, suspects, accuracy=0.95):
    agreement, support = np.full(n, 0.9), np.full(n, 0.1)
    agreement[suspects], support[suspects] = 0.0, 1.0
    return Votes(agreement, np.ones(n, int), support, accuracy)


def test_doubtful_labels_are_shown_with_what_their_neighbours_say():
    _, kinds = found(gathered(), votes_on(240, [4, 8]))
    assert kinds["labels"].count == 2
    assert kinds["labels"].examples[0].text == "labelled a; 100 % of its neighbours are b"
    assert "labels" not in found(gathered(), votes_on(240, []))[1]


def test_neighbours_that_are_often_wrong_doubt_nothing():
    _, kinds = found(gathered(), votes_on(240, [4], accuracy=0.5))
    assert "agree with only 50 % of the labels" in kinds["labels"].text
    assert kinds["labels"].count == 0


def test_a_part_of_the_images_is_said_to_be_a_part():
    voters = np.arange(0, 240, 2)
    _, kinds = found(gathered(), votes_on(120, [3]), voters)
    assert "1 label among 120 of 240 images may be wrong" in kinds["labels"].text
    assert kinds["labels"].examples[0].names == ("a/6.jpg",)
    assert "No label among 120 of 240 images" in found(gathered(), votes_on(120, []), voters)[1]["labels"].text


def test_the_smallest_difference_has_the_power_it_claims():
    error, n = 0.1, 400
    difference = checks.smallest_difference(error, n)
    rng = np.random.default_rng(0)
    disagreements = rng.binomial(n, error, 4000)
    better = rng.binomial(disagreements, 0.5 * (1 + difference / error))
    z = (2 * better - disagreements) / np.sqrt(np.maximum(disagreements, 1))  # McNemar
    assert (np.abs(z) > norm.ppf(0.975)).mean() == pytest.approx(0.8, abs=0.05)


def test_few_validation_images_warn():
    small = gathered(np.array([0, 1] * 20))
    _, kinds = found(small)
    assert kinds["resolution"].level == "warning"
    assert "split.val" in kinds["resolution"].text
    assert found(gathered(np.array([0, 1] * 4000), images=np.zeros((8000, 1, 1, 1), np.uint8)))[1]["resolution"].level == "note"


@pytest.mark.parametrize("kind", checks.SPECIAL)
def test_images_that_needed_more_than_reading_are_named(kind):
    _, kinds = found(gathered(special={kind: ("a/1.png",)}))
    assert kinds[kind].level == "note"
    assert kinds[kind].examples[0].names == ("a/1.png",)


@pytest.mark.parametrize(("shape", "expected", "kind"), [((1, 16, 16), (16, 16), "png"), ((3, 224, 224), (96, 96), "jpeg")])
def test_previews_are_small_pictures(shape, expected, kind):
    head, _, payload = checks.preview(RNG.integers(0, 256, shape).astype(np.uint8)).partition(";base64,")
    assert head == f"data:image/{kind}"
    assert Image.open(io.BytesIO(base64.b64decode(payload))).size == expected
