"""What is wrong with this data, before any GPU time is spent on it: findings, each with what to do.

Notation: N images, K classes, splits "train", "val", "test".
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hpsearch.finetune.neighbours import Copies, Rows, Votes
from hpsearch.types import DataReport, Example, Finding, Value

SHOWN = 12  # examples of a finding
PREVIEW = 96  # pixels, longer side of a thumbnail in a report
HEAVY = 0.05  # share of balanced accuracy from which one validation image is a large part of it
LOPSIDED = 3.0  # largest over smallest class from which accuracy misleads
BALANCED = ("balanced_accuracy", "f1", "recall", "precision")  # objectives under which every class counts the same
MINORITY = 0.1  # an image is suspect when at most this share of its neighbours carries its label,
MAJORITY = 0.7  # and at least this share agrees on another one
USEFUL = 0.8  # the neighbours must be right this often before their doubts mean anything
POWER, SIGNIFICANCE = 0.8416, 1.9600  # normal quantiles of 80 % power and 5 % two-sided
KS_LIMIT = 1.95  # two-sided 0.1 % point of the Kolmogorov-Smirnov statistic, times sqrt(nm / (n + m))
KS_EFFECT = 0.15  # and the difference of distributions from which it matters
STATISTICS = ("width", "height", "brightness", "contrast", "saturation")
WORDS = {"train": "training", "val": "validation", "test": "test"}
SPECIAL = {  # what is said of one image, and of several
    "rgba": ("has transparency: it is put on white", "have transparency: they are put on white"),
    "cmyk": (
        "is in CMYK or another print colour space: it is converted to RGB, without its colour profile",
        "are in CMYK or another print colour space: they are converted to RGB, without their colour profiles",
    ),
    "palette": ("has a palette: it is converted to RGB", "have a palette: they are converted to RGB"),
    "16-bit": (
        "has 16 bits a channel: 0 to 65535 is scaled to 0 to 255, so it turns out dark if it uses a small part of that range",
        "have 16 bits a channel: 0 to 65535 is scaled to 0 to 255, so pictures that use a small part of that range turn out dark",
    ),
    "rotated": ("carries an EXIF rotation: it is turned upright", "carry an EXIF rotation: they are turned upright"),
    "animated": ("has several frames or pages: the first is used", "have several frames or pages: the first is used"),
}
REASONS = {
    "not an image": ("is no image", "are no images"),
    "empty file": ("empty file", "empty files"),
    "not a file": ("is no file", "are no files"),
}


@dataclass(frozen=True)
class Gathered:
    """Everything that the checks look at; rows are the images that could be used."""

    data: str
    classes: tuple[str, ...]
    objective: str
    names: Sequence[str]  # of each image
    labels: np.ndarray  # (N,)
    parts: Mapping[str, np.ndarray]  # split -> rows
    images: Rows  # (N, C, H, W) uint8
    statistics: np.ndarray | None  # (N, 5), STATISTICS
    copies: Copies
    bad: Sequence[tuple[str, str]]  # name and reason of each file that could not be used
    bad_limit: float  # share of files
    special: Mapping[str, Sequence[str]]  # kind -> names
    notes: Sequence[str]
    empty_classes: Sequence[str]
    remarks: Sequence[Finding] = ()  # of whoever found the images

    def counts(self) -> dict[str, np.ndarray]:
        """Images of each class in each split."""
        return {name: np.bincount(self.labels[rows], minlength=len(self.classes)) for name, rows in self.parts.items()}


def report(g: Gathered, votes: Votes | None, voters: np.ndarray, why_no_votes: str) -> DataReport:
    """All checks. `votes` are on the rows `voters`; without them `why_no_votes` says why labels were not checked."""
    findings = [
        *unusable(g),
        *g.remarks,
        *(Finding("ignored", "note", text) for text in g.notes),
        *class_findings(g),
        *copy_findings(g),
        *shift(g),
        *label_findings(g, votes, voters, why_no_votes),
        *special_findings(g),
        *resolution(g, votes),
    ]
    rank = {"error": 0, "warning": 1, "note": 2}
    counts = {name: tuple(int(n) for n in row) for name, row in g.counts().items()}
    facts: dict[str, Value] = {"images": len(g.labels), "majority_share": round(float(majority(g)), 4)}
    if len(g.parts["val"]):
        facts["smallest_difference"] = round(smallest_difference(error_rate(votes), len(g.parts["val"])), 4)
    if votes is not None:
        facts |= {"neighbour_accuracy": round(votes.accuracy, 4), "labels_checked": len(voters)}
    return DataReport(g.data, g.classes, counts, len(g.bad), tuple(sorted(findings, key=lambda f: rank[f.level])), facts)


# ---------------------------------------------------------------- files


def unusable(g: Gathered) -> Iterator[Finding]:
    """Files that were left out, by reason; an error above the limit."""
    if not g.bad:
        return
    share = len(g.bad) / (len(g.bad) + len(g.labels))
    reasons: dict[str, int] = {}
    for _, reason in g.bad:
        reasons[reason] = reasons.get(reason, 0) + 1
    told = ", ".join(counted(n, reason) for reason, n in sorted(reasons.items(), key=lambda pair: -pair[1])[:6])
    examples = tuple(Example((name,), reason) for name, reason in g.bad[:SHOWN])
    text = f"{several(len(g.bad), 'file')} ({100 * share:.1f} %) cannot be used and {'is' if len(g.bad) == 1 else 'are'} left out: {told}."
    them = "it" if len(g.bad) == 1 else "them"
    if share > g.bad_limit:
        remedy = f" That is more than the {100 * g.bad_limit:g} % allowed: repair or remove {them}, or raise bad_files."
        yield Finding("unreadable", "error", text + remedy, len(g.bad), examples)
    else:
        yield Finding("unreadable", "warning", f"{text} Repair {them} or take {them} away.", len(g.bad), examples)


def special_findings(g: Gathered) -> Iterator[Finding]:
    """Images that needed more than reading."""
    for kind, texts in SPECIAL.items():
        if names := g.special.get(kind):
            examples = tuple(Example((name,)) for name in names[:SHOWN])
            yield Finding(kind, "note", f"{several(len(names), 'image')} {texts[len(names) > 1]}.", len(names), examples)


# ---------------------------------------------------------------- classes


def majority(g: Gathered) -> float:
    """Share of the largest class among the validation (else training) images: what always guessing it scores."""
    rows = g.parts["val"] if len(g.parts["val"]) else g.parts["train"]
    return float(np.bincount(g.labels[rows]).max() / len(rows)) if len(rows) else 0.0


def class_findings(g: Gathered) -> Iterator[Finding]:
    """Empty classes, classes missing from a split, imbalance."""
    if g.empty_classes:
        names = ", ".join(g.empty_classes[:SHOWN])
        text = f"{several(len(g.empty_classes), 'class', 'classes')} without images left out: {names}. Remove the folders or fill them."
        yield Finding("empty-class", "warning", text, len(g.empty_classes))
    counts = g.counts()
    for part, level, harm in (
        ("train", "error", "the model cannot learn them: add images or remove the class"),
        ("val", "warning", "whether the model finds them is not measured: add images"),
    ):
        missing = [name for name, n in zip(g.classes, counts[part], strict=True) if n == 0]
        if missing and (part == "train" or len(g.parts[part])):
            text = f"No {WORDS[part]} images of {several(len(missing), 'class', 'classes')} ({', '.join(missing[:SHOWN])}): {harm}."
            yield Finding(f"no-{part}-images", level, text, len(missing))  # type: ignore[arg-type]
    if not len(g.parts["val"]):
        text = "There are no validation images, so trials cannot be judged: set split.val, or add a val folder."
        yield Finding("no-validation", "error", text)
    if not len(g.parts["test"]):
        text = "There is no test split: the winner is only known on the images it was chosen by, which flatters it. Set split.test."
        yield Finding("no-test", "warning", text)
    if unused := len(g.labels) - sum(map(len, g.parts.values())):
        text = f"{several(unused, 'image')} not used: split.train_per_class, split.val and split.test ask for fewer than there are."
        yield Finding("unused", "note", text, unused)
    yield from imbalance(g, counts["train"])
    yield from heavy_images(g, counts["val"], counts["train"])


def imbalance(g: Gathered, counts: np.ndarray) -> Iterator[Finding]:
    """Classes of very different size, and the metric to prefer."""
    if counts.min() == 0 or counts.max() / counts.min() < LOPSIDED:
        return
    big, small = int(counts.argmax()), int(counts.argmin())
    head = f"The classes are unequal: {counts[big]:,} training images of '{g.classes[big]}', {counts[small]:,} of '{g.classes[small]}'"
    head += f" ({counts[big] / counts[small]:.0f} to 1); always guessing the largest is right in {100 * majority(g):.0f} %."
    if g.objective in BALANCED:
        yield Finding("imbalance", "note", f"{head} The objective {g.objective} counts every class the same, as it should.")
    else:
        text = f"{head} Accuracy and loss can look good while small classes are missed: prefer objective: balanced_accuracy or f1."
        yield Finding("imbalance", "warning", text)


def heavy_images(g: Gathered, counts: np.ndarray, trained: np.ndarray) -> Iterator[Finding]:
    """Classes with so few validation images that one of them moves balanced accuracy, the mean of all classes' recalls, by a lot."""
    present = counts[counts > 0]
    if not len(present) or 1 / (len(present) * present.min()) < HEAVY:
        return
    few = [i for i in range(len(g.classes)) if counts[i] and 1 / (len(present) * counts[i]) >= HEAVY]
    small = min(few, key=lambda i: int(counts[i]))
    others = f", and so few have {len(few) - 1} more" if len(few) > 1 else ""
    text = f"One validation image of '{g.classes[small]}' is {100 / (len(present) * counts[small]):.0f} points of balanced accuracy "
    text += f"(f1, recall and precision likewise), since its class has {counts[small]}{others}: what is chosen by it is chosen by luck. "
    text += "Add images of such classes, or raise split.val"
    folds = min(5, int(counts[small] + trained[small]))
    text += f"; or measure the best on folds, where every image is validated on once (--cv 3x{folds})." if folds > 1 else "."
    level = "warning" if g.objective in BALANCED or counts.max() >= LOPSIDED * counts[small] else "note"
    yield Finding("heavy-images", level, text, len(few))  # type: ignore[arg-type]


# ---------------------------------------------------------------- copies


def copy_findings(g: Gathered) -> Iterator[Finding]:
    """Copies under two labels, across splits (leakage), and within a split."""
    split = np.full(len(g.labels), "", dtype="<U5")
    for name, rows in g.parts.items():
        split[rows] = name
    for kind, pairs in (("exact", g.copies.exact), ("near", g.copies.near)):
        word = "exact copies of each other" if kind == "exact" else "nearly the same picture"
        torn = [(i, j) for i, j in pairs if g.labels[i] != g.labels[j]]
        leaks = [(i, j) for i, j in pairs if split[i] and split[j] and split[i] != split[j]]
        within = [(i, j) for i, j in pairs if split[i] and split[i] == split[j] and g.labels[i] == g.labels[j]]
        if torn:
            text = f"{several(len(torn), 'pair')} of images under different labels {be(torn)} {word}: one label of each is wrong. "
            text += "Decide, and remove one."
            yield Finding(f"{kind}-copies-labels", "warning", text, len(torn), pair_examples(g, torn, split))
        if leaks:
            text = f"{several(len(leaks), 'pair')} of images in different splits {be(leaks)} {word}: what was learned is measured again "
            text += "(leakage), and scores are too good. Remove them from training, or let hpsearch divide the data: "
            text += "it keeps copies together."
            yield Finding(f"{kind}-copies-across", "warning", text, len(leaks), pair_examples(g, leaks, split))
        if within:
            twice = "it counts" if len(within) == 1 else "they count"
            text = f"{several(len(within), 'pair')} of images within a split {be(within)} {word}: {twice} twice. Harmless when few."
            yield Finding(f"{kind}-copies-within", "note", text, len(within), pair_examples(g, within, split))
    if g.copies.searched < len(g.labels):
        text = f"Near copies were looked for among the first {g.copies.searched:,} images only; exact copies among all."
        yield Finding("copies-searched", "note", text)


def be(pairs: Sequence[object]) -> str:
    """The verb after a count of pairs."""
    return "is" if len(pairs) == 1 else "are"


def pair_examples(g: Gathered, pairs: Sequence[tuple[int, int]], split: np.ndarray) -> tuple[Example, ...]:
    """The first pairs with their labels and splits."""

    def told(i: int) -> str:
        return f"{g.classes[g.labels[i]]}, {WORDS.get(split[i], 'unused')}"

    return tuple(
        Example((g.names[i], g.names[j]), f"{told(i)} / {told(j)}", (preview(g.images[i]), preview(g.images[j]))) for i, j in pairs[:SHOWN]
    )


# ---------------------------------------------------------------- shift


def shift(g: Gathered) -> Iterator[Finding]:
    """Whether validation and test images are of another kind than the training images: sizes, light, colour, class shares.

    Two-sample Kolmogorov-Smirnov statistic (Smirnov, 1948) at 0.1 % and at least KS_EFFECT; total variation of class shares.
    """
    train = g.parts["train"]
    for part in ("val", "test"):
        rows = g.parts[part]
        if min(len(rows), len(train)) < 20:
            continue
        moved = []
        for column, name in enumerate(STATISTICS if g.statistics is not None else ()):
            assert g.statistics is not None
            a, b = g.statistics[train, column], g.statistics[rows, column]
            d = ks_statistic(a, b)
            if d > KS_EFFECT and d * math.sqrt(len(a) * len(b) / (len(a) + len(b))) > KS_LIMIT:
                moved.append(f"{name} {a.mean():.3g} against {b.mean():.3g}")
        shares = [np.bincount(g.labels[r], minlength=len(g.classes)) / len(r) for r in (train, rows)]
        apart = 0.5 * float(np.abs(shares[0] - shares[1]).sum())
        noise = math.sqrt(len(g.classes) / (2 * math.pi)) * math.sqrt(1 / len(train) + 1 / len(rows))  # expected by chance, about
        if apart > 0.1 and apart > 3 * noise:
            moved.append(f"class shares differ by {100 * apart:.0f} %")
        if moved:
            text = f"The {WORDS[part]} images differ from the training images (means, training against {WORDS[part]}): {'; '.join(moved)}. "
            text += "If that is not meant, mix the images and divide them again; if it is, expect scores to fall on new images."
            yield Finding("shift", "warning", text, len(moved))


def ks_statistic(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference between the empirical distribution functions of two samples, in [0, 1]."""
    points = np.concatenate([a, b])
    below = [np.searchsorted(np.sort(sample), points, side="right") / len(sample) for sample in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


# ---------------------------------------------------------------- labels


def label_findings(g: Gathered, votes: Votes | None, voters: np.ndarray, why_not: str) -> Iterator[Finding]:
    """Labels that the nearest neighbours in the frozen features contradict (after Northcutt et al., 2021, in spirit)."""
    if votes is None:
        yield Finding("labels", "note", f"Labels were not checked: {why_not}.")
        return
    if votes.accuracy < USEFUL:
        text = "Labels were not judged: in the frozen features the nearest neighbours agree with only "
        yield Finding("labels", "note", f"{text}{100 * votes.accuracy:.0f} % of the labels, too few to doubt one by.")
        return
    order = np.lexsort((votes.agreement, -votes.support))
    suspects = [int(i) for i in order if votes.agreement[i] <= MINORITY and votes.support[i] >= MAJORITY]
    part = f" among {len(voters):,} of {len(g.labels):,} images" if len(voters) < len(g.labels) else ""
    if suspects:
        examples = tuple(
            Example(
                (g.names[voters[i]],),
                doubt(g, votes, i, int(voters[i])),
                (preview(g.images[voters[i]]),),
            )
            for i in suspects[:SHOWN]
        )
        text = f"{several(len(suspects), 'label')}{part} may be wrong: nearly all nearest neighbours in the frozen features carry another. "
        text += (
            f"Look at them; hard but right examples are among them (of all labels the neighbours agree with {100 * votes.accuracy:.0f} %)."
        )
        yield Finding("labels", "warning", text, len(suspects), examples)
    elif part:
        yield Finding("labels", "note", f"No label{part} is contradicted by its neighbours in the frozen features.")


def doubt(g: Gathered, votes: Votes, voter: int, row: int) -> str:
    """What the neighbours of an image say."""
    others = f"{100 * votes.support[voter]:.0f} % of its neighbours are {g.classes[votes.other[voter]]}"
    return f"labelled {g.classes[g.labels[row]]}; {others}"


# ---------------------------------------------------------------- resolution


def error_rate(votes: Votes | None) -> float:
    """The error rate that fine-tuned models may come to: the neighbours', within reason; 10 % when unknown."""
    return min(0.5, max(0.01, 1 - votes.accuracy)) if votes is not None else 0.1


def smallest_difference(error: float, images: int) -> float:
    """Difference in accuracy that `images` validation images show with 80 % power at 5 % (McNemar, 1947; Connor, 1987).

    Two models that each err on a share `error`, half of it in common, disagree on that same share of the images.
    """
    return min(1.0, (POWER + SIGNIFICANCE) * math.sqrt(error / images))


def resolution(g: Gathered, votes: Votes | None) -> Iterator[Finding]:
    """The smallest difference that this validation set can show."""
    n = len(g.parts["val"])
    if not n:
        return
    error = error_rate(votes)
    difference = 100 * smallest_difference(error, n)
    text = f"With {several(n, 'validation image')} two trials at about {100 * (1 - error):.0f} % accuracy must differ by "
    text += f"{difference:.1f} points to be told apart (80 % power, paired); what is nearer is noise."
    remedy = " More validation images would help (split.val), or judge by the loss, which is finer." if difference > 5 else ""
    yield Finding("resolution", "warning" if difference > 10 else "note", text + remedy, n)


# ---------------------------------------------------------------- small things


def counted(n: int, reason: str) -> str:
    """How many files have a reason."""
    return f"{n:,} {'× ' * reason[:1].isdigit()}{REASONS[reason][n > 1] if reason in REASONS else reason}"


def several(n: int, one: str, many: str | None = None) -> str:
    """A count with its noun."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def preview(pixels: np.ndarray) -> str:
    """An image (C, H, W) uint8 as a small PNG or JPEG in a data URI."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    image.thumbnail((PREVIEW, PREVIEW))
    kind = "png" if max(image.size) < 48 else "jpeg"  # JPEG spoils tiny pictures, PNG is large for others
    out = io.BytesIO()
    image.save(out, kind, **({"quality": 80} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
