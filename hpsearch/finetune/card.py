"""The model card: what a person should know before they use an exported model (Mitchell et al., 2019), as Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpsearch.recipes import CORE, CRAFT, has_effect
from hpsearch.types import OBJECTIVES, Forgetting, Judged, Params, Status, TrialRecord

CLASSES = 40  # named in a row
ALWAYS = ("optimizer", "momentum", "schedule", "warmup_epochs")  # are told even where they are the defaults
PATH = re.compile(r"\S*/(?=[^/\s])")  # folders before a file: of no use to a reader elsewhere
MARKS = re.compile(r"([\\`*_{}\[\]<>|#~])")  # what Markdown would read as its own
FP32, TF32, BF16 = 1e-4, 1e-2, 0.05  # how far the loss, computed anew, may be from the one logged: in nats, and as a share of it
ORIGINS = {"default": "The default recipe", "warm": "A recipe of an earlier study", "portfolio": "A recipe from the portfolio"}
NORMAL = 1.96  # 95 % of a normal distribution lie within so many standard deviations


@dataclass(frozen=True)
class Winner:
    """A trained trial, and the study that it comes from."""

    study: str
    spec: Mapping[str, Any]  # resolved
    facts: Mapping[str, Any]
    record: TrialRecord
    default: TrialRecord | None  # trial 0
    counts: Mapping[str, int]  # trials per status
    checkpoint: Path
    folder: Path  # of the study
    test: Judged | None = None  # this model on the test images, when they were looked at
    openings: int = 0  # how often the study looked at them

    @property
    def precision(self) -> str:
        """In which its scores were computed."""
        return str(self.facts.get("precision", "fp32"))

    @property
    def tolerance(self) -> float:
        """How far the validation loss in float32 may be from the logged one; GPUs round the inputs of products, also in fp32."""
        return BF16 if self.precision == "bf16" else FP32 if self.facts.get("device", "cpu") == "cpu" else TF32


def card(winner: Winner, config: Mapping[str, Any], recomputed: float | None) -> str:
    """README.md; `recomputed` is the validation loss that the exported files gave, None when they were not tried."""
    sections = [
        opening(winner, config),
        use(config),
        scores(winner, config, recomputed),
        per_class(winner.record, config["classes"]),
        calibration(config),
        data(winner, config),
        recipe(winner),
        search(winner),
        limits(winner, config),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def opening(winner: Winner, config: Mapping[str, Any]) -> str:
    """What it is."""
    classes = config["classes"]
    listed = ", ".join(plain(name) for name in classes[:CLASSES]) + (", ..." if len(classes) > CLASSES else "")
    return (
        f"# {plain(winner.study)}: {plain(config['model'])} for {len(classes)} classes\n\n"
        f"An image classifier: {plain(config['model'])} fine-tuned by hpsearch {config['hpsearch']} "
        f"on {named(config['data'])}. It tells apart: {listed}."
    )


def use(config: Mapping[str, Any]) -> str:
    """How to use it."""
    pre = config["preprocessing"]
    colour = "gray" if pre["channels"] == 1 else "RGB"
    torchvision = "" if config["model"] == "glyphnet" else ", torchvision"
    own = ""
    if ":" in config["model"]:
        module = config["model"].partition(":")[0].split(".")[0]
        own = f"\n\nThe architecture is your own code, which is not in this folder: have `{module}` beside `predict.py` or on `PYTHONPATH`."
    return (
        "## Use\n\n```\npython predict.py IMAGE ...        # needs "
        f"torch{torchvision}, safetensors, Pillow\nhpsearch predict FOLDER IMAGE ...  # also folders of images, --json, --device\n```\n\n"
        f"Images are turned upright, put on white where transparent, converted to {colour}, resized so that the shorter side has "
        f"{pre['resize']} pixels ({pre['interpolation']}), cut to the central {pre['size']} x {pre['size']}, and normalised with mean "
        f"{numbers(pre['mean'])} and standard deviation {numbers(pre['std'])}; both scripts do so. "
        f"`model.safetensors` has the names of the architecture's own state dict.{own}"
    )


def scores(winner: Winner, config: Mapping[str, Any], recomputed: float | None) -> str:
    """What was measured, and on what."""
    record, default, n = winner.record, winner.default, config["measured_on"]["images"]
    rows = [["", "this model", "default recipe (trial 0)"]]
    keys = [key for key in OBJECTIVES if key == "val_loss" or key in record.metrics]
    rows += [[words(key), value(key, record), value(key, default) if default else "–"] for key in keys]
    if winner.test is not None:
        rows = with_test(rows, keys, winner.test, winner.openings)
    accuracy = record.metrics.get("accuracy")
    interval = ""
    if accuracy is not None and n:
        low, high = wilson(accuracy, n)
        interval = f" With so many images the accuracy is known to lie between {percent(low)} and {percent(high)} (95 %, Wilson), "
        interval += "before one considers that the model was chosen by them."
    checked = (
        f"Computed anew from the files in this folder, in float32, the loss is {recomputed:.4f}; logged was {record.val_loss:.4f}, in "
        f"{winner.precision}."
        if recomputed is not None
        else "The files in this folder were not tried on the validation images (`--uncalibrated`)."
    )
    tests = winner.facts.get("test_images")
    test = f" The {tests:,} test images were not looked at by the search." if tests else ""
    if winner.test is not None:
        test += on_test(winner.test, winner.openings)
    return (
        f"## Scores\n\n{table(rows)}\n\nMeasured on the {n:,} validation images. The epoch whose weights were kept, and this trial "
        f"among {sum(winner.counts.values())}, were chosen by {words(record.objective)} on these same images: expect less on new ones."
        f"{interval}{test} {checked}"
    )


def with_test(rows: Sequence[Sequence[str]], keys: Sequence[str], test: Judged, openings: int) -> list[list[str]]:
    """The table of scores with a column for the test images."""
    values = [f"{test.loss:.4f} nats" if key == "val_loss" else percent(test.metrics[key]) if key in test.metrics else "–" for key in keys]
    column = [f"this model, test ({opened(openings)}, {test.images:,} images)", *values]
    named = [row[0].replace(words("val_loss"), "loss") for row in rows]
    return [[name, *row[1:], shown] for name, row, shown in zip(named, rows, column, strict=True)]


def on_test(test: Judged, openings: int) -> str:
    """How well the test images tell what the model does on new ones."""
    low, high = wilson(test.metrics["accuracy"], test.images)
    which = "which chose nothing" if openings < 2 else opened(openings)
    return f" By the test images, {which}, the accuracy of this model lies between {percent(low)} and {percent(high)} (95 %, Wilson)."


def opened(times: int) -> str:
    """How often the test images were looked at."""
    return "opened once" if times < 2 else f"opened {times} times"


def per_class(record: TrialRecord, classes: Sequence[str]) -> str:
    """Each class, on the validation images."""
    if not record.per_class:
        return ""
    rows = [["class", "images", "precision", "recall", "F1"]]
    for name, n, *shares in zip(classes, *record.per_class.values(), strict=True):
        rows.append([plain(name), f"{n:.0f}", *map(percent, shares)])
    return f"## Classes\n\n{table(rows)}"


def calibration(config: Mapping[str, Any]) -> str:
    """How far probabilities can be believed."""
    found = config["calibration"]
    if found is None:
        return "## Calibration\n\nNone: the probabilities are the network's own, which tend to be too sure of themselves."
    rows = [
        ["", "before", "after"],
        ["negative log-likelihood [nats]", f"{found['nll_before']:.4f}", f"{found['nll_after']:.4f}"],
        ["expected calibration error, 15 bins", percent(found["ece_before"]), percent(found["ece_after"])],
    ]
    done = f"left at 1: {found['reason']}" if found["reason"] else "fitted by maximum likelihood (Guo et al., 2017)"
    return (
        f"## Calibration\n\nProbabilities are softmax(logits / {found['temperature']:.4g}); the temperature was {done}. "
        "Predictions do not change.\n\n"
        f"{table(rows)}\n\nFitted and measured on the same {found['images']:,} validation images that chose the weights: on new images "
        "expect a larger error, and after a change of camera, light or population a much larger one."
    )


def data(winner: Winner, config: Mapping[str, Any]) -> str:
    """What it was trained on."""
    splits = [[name, f"{winner.facts[f'{key}_images']:,}"] for name, key in SPLITS if f"{key}_images" in winner.facts]
    return (
        f"## Data\n\nImages: {named(config['data'])}; digest `{config['data_digest']}` (of pixels, labels and splits).\n\n"
        f"{table([['split', 'images'], *splits])}"
    )


WORDS = {
    "val_loss": "validation loss",
    "balanced_accuracy": "balanced accuracy",
    "precision": "precision, mean of classes",
    "recall": "recall, mean of classes",
    "f1": "F1, mean of classes",
    "top5": "top-5 accuracy",
}
SPLITS = (("training", "train"), ("validation", "val"), ("test", "test"))


def recipe(winner: Winner) -> str:
    """How it was trained."""
    record = winner.record
    unused = {name: entry.get("default") for name, entry in winner.spec.get("space", {}).items() if name in CORE and "when" in entry}
    settings: Params = {**winner.spec.get("recipe", {}), **record.params, **record.effective}
    told = {**unused, **record.effective, **{name: setting for name, setting in settings.items() if worth_telling(name, settings)}}
    rows = [["setting", "value"], *([f"`{name}`", plain(shown(setting))] for name, setting in told.items())]
    weights = PATH.sub("", str(winner.facts.get("weights", "")).removeprefix("weights: "))
    start = f" It began with {plain(weights)}." if weights else ""
    return (
        f"## Recipe\n\n{table(rows)}\n\nEverything else is off. The weights are those after epoch {record.best_epoch} of "
        f"{len(record.curve)}; training took {record.seconds:.1f} s on {plain(winner.facts.get('device', 'an unknown device'))} with torch "
        f"{winner.facts.get('torch', '?')}.{start}"
    )


def worth_telling(name: str, settings: Params) -> bool:
    """Whether a setting did something that the default recipe does not do."""
    usual = name in CRAFT and settings[name] == CRAFT[name]["default"]
    return has_effect(name, settings) and (not usual or name in ALWAYS)


def search(winner: Winner) -> str:
    """How the recipe was found."""
    spec, record = winner.spec, winner.record
    counts = ", ".join(f"{n} {status.lower()}" for status, n in winner.counts.items())
    origin = ORIGINS.get(record.origin, "A sampled recipe")
    verb = "in a search by" if record.origin in ("warm", "portfolio") else "found by"
    space = [[f"`{name}`", plain(searched(entry))] for name, entry in spec.get("space", {}).items() if "value" not in entry]
    found = f"\n\n{table([['searched', 'among'], *space])}" if space else ""
    return (
        f"## Search\n\n{origin}, trial {record.number} of {sum(winner.counts.values())} ({counts}), {verb} {spec.get('sampler', '?')} "
        f"with seed {spec.get('seed', '?')}, pruner {spec.get('pruner', {}).get('name', '?')}, for {words(record.objective)}.{found}"
    )


def limits(winner: Winner, config: Mapping[str, Any]) -> str:
    """What not to believe."""
    size = config["preprocessing"]["size"]
    train = winner.facts.get("train_images")
    lines = [
        f'Every image gets one of the {len(config["classes"])} classes, whatever it shows: there is no "none of these".',
        f"It sees {size} x {size} pixels from the centre of an image. What lies outside, or is lost at that size, does not count.",
        f"The scores hold for images like those it was {'tested on' if winner.test else 'chosen by'}, from one seed; how it does on others "
        "has not been measured.",
    ]
    if winner.test is not None and winner.openings > 1:
        lines.append(
            f"The test images were {opened(winner.openings)}: what was seen of them may have decided what was tried next, so the last "
            "result flatters; only images that nobody has looked at yet would tell by how much."
        )
    if winner.test is not None and winner.test.forgetting is not None:
        lines.append(forgotten(winner.test.forgetting))
    if train:
        lines.insert(
            1, f"It was fine-tuned on {train:,} images, and has the blind spots of these and of what its weights were pretrained on."
        )
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def forgotten(lost: Forgetting) -> str:
    """What fine-tuning has cost of the task that the weights were pretrained on."""
    text = f"Of the task that its weights were pretrained on, {lost.task}, it solves {percent(lost.after)} with the head of that time, "
    text += f"and did {percent(lost.before)} before fine-tuning"
    if lost.refitted_after is not None and lost.refitted_before is not None:
        text += f"; with a linear head fitted anew {percent(lost.refitted_after)}, before {percent(lost.refitted_before)}"
    return f"{text} ({lost.images:,} images)."


# ---------------------------------------------------------------- words


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the head, columns after the first stand to the right."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, f"|---|{'---:|' * (len(rows[0]) - 1)}", *body])


def plain(value: object) -> str:
    """Text as it is, on one line."""
    return MARKS.sub(r"\\\1", " ".join(str(value).split()))


def named(data: str) -> str:
    """What a data set is called."""
    return "the handwritten digits that come with scikit-learn" if data == "digits" else plain(data)


def words(key: str) -> str:
    """A score's name."""
    return WORDS.get(key, key)


def value(key: str, record: TrialRecord) -> str:
    """A trial's score."""
    if key == "val_loss":
        return "–" if record.val_loss is None else f"{record.val_loss:.4f} nats"
    return percent(record.metrics[key]) if record.status is Status.COMPLETE and key in record.metrics else "–"


def percent(share: float) -> str:
    """A share in [0, 1]."""
    return f"{100 * share:.1f} %"


def shown(setting: object) -> str:
    """A hyperparameter."""
    return f"{setting:.4g}" if isinstance(setting, float) else str(setting)


def searched(entry: Mapping[str, Any]) -> str:
    """A hyperparameter's range or choices."""
    if "choices" in entry:
        return ", ".join(map(shown, entry["choices"]))
    return f"{shown(entry.get('low'))} to {shown(entry.get('high'))}" + (", log" if entry.get("log") else "")


def numbers(values: Sequence[float]) -> str:
    """One value a channel."""
    return ", ".join(f"{v:g}" for v in values)


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share measured on n images (Wilson, 1927)."""
    centre = share + NORMAL**2 / (2 * n)
    half = NORMAL * math.sqrt(share * (1 - share) / n + NORMAL**2 / (4 * n**2))
    return (centre - half) / (1 + NORMAL**2 / n), (centre + half) / (1 + NORMAL**2 / n)
