"""Studies made by hand: what the tests of the report draw and count."""

from __future__ import annotations

import base64
import io
import math
import random
from dataclasses import replace
from functools import cache
from typing import Any

from PIL import Image, ImageDraw

from hpsearch.report.tables import StudyView
from hpsearch.types import DataReport, Example, Finding, Status, TrialRecord

HOSTILE = "<img src=x onerror=alert(1)>\"'</script><b>&amp; %{y} $x$"
SPACE: dict[str, dict[str, Any]] = {
    "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True, "default": 1e-3},
    "batch_size": {"choices": [16, 32, 64], "default": 32},
    "epochs": {"low": 4, "high": 16, "default": 10},
    "weight_decay": {"low": 1e-5, "high": 1e-1, "log": True, "default": 1e-2},
    "dropout": {"low": 0.0, "high": 0.5, "default": 0.1},
    "frozen_layers": {"low": 0, "high": 6, "default": 0},
}
SPEC: dict[str, Any] = {
    "name": "digits-tpe",
    "data": "digits",
    "split": {"train_per_class": 10, "val_images": 400},
    "model": "glyphnet",
    "weights": "DEFAULT",
    "sampler": "tpe",
    "pruner": {"name": "median", "warmup": 0.3, "startup_trials": 5},
    "seed": 0,
    "trials": 50,
    "space": SPACE,
}
FACTS: dict[str, Any] = {
    "model": "glyphnet",
    "parameters": 171_902,
    "device": "cpu",
    "blocks": ["stem", "block1", "block2", "block3", "block4", "block5"],
    "images": {"train": 100, "val": 400, "test": 1297},
    "digest": "9f1c2ab34d5e6f70",
    "versions": {"torch": "2.15.0", "optuna": "5.0.0"},
}


def epoch(number: int, val_loss: float, accuracy: float = 0.9, seconds: float = 0.1) -> dict[str, float]:
    """One row of a curve."""
    shares = {"accuracy": accuracy, "precision": accuracy + 0.003, "recall": accuracy - 0.002, "f1": accuracy - 0.004}
    return {
        "epoch": number,
        "val_loss": val_loss,
        "train_loss": 0.8 * val_loss,
        **shares,
        "learning_rate": 1e-3,
        "seconds": seconds * number,
    }


def record(number: int, status: Status = Status.COMPLETE, losses: tuple[float, ...] = (0.9, 0.5), **changes: Any) -> TrialRecord:
    """A trial whose curve has the given losses; its score is the lowest finite one."""
    known = [loss for loss in losses if math.isfinite(loss)]
    best = min(known) if known else None
    accuracy = changes.pop("accuracy", 0.9)
    params = {"learning_rate": 1e-3, "batch_size": 32, "epochs": 10, "weight_decay": 1e-2, "dropout": 0.1, "frozen_layers": 0}
    params |= changes.pop("params", {})
    shares = changes.pop("accuracies", (accuracy,) * len(losses))
    curve = tuple(epoch(i, loss, share) for i, (loss, share) in enumerate(zip(losses, shares, strict=True), start=1))
    values: dict[str, Any] = {
        "number": number,
        "status": status,
        "params": params,
        "origin": "default" if number == 0 else "sampled",
        "attempt": 1,
        "val_loss": best,
        "best_epoch": losses.index(best) + 1 if best is not None else None,
        "seconds": 0.1 * len(losses),
        "started": 1_760_000_000.0 + number,
        "ended": 1_760_000_001.0 + number,
        "metrics": {"accuracy": accuracy, "precision": accuracy, "recall": accuracy, "f1": accuracy},
        "effective": params,
        "curve": curve,
        "checkpoint": None,
        "error": None,
    }
    return TrialRecord(**(values | changes))


def failed(number: int, error: str = "the validation loss became NaN in epoch 2", losses: tuple[float, ...] = ()) -> TrialRecord:
    """A trial that ended without a score."""
    return record(number, Status.FAILED, losses, val_loss=None, best_epoch=None, metrics={}, error=error)


def view(*records: TrialRecord, **changes: Any) -> StudyView:
    """A study of these trials."""
    values: dict[str, Any] = {
        "name": "digits-tpe",
        "spec": SPEC,
        "facts": FACTS,
        "records": records,
        "importance": (
            ("learning_rate", 0.52),
            ("frozen_layers", 0.21),
            ("epochs", 0.12),
            ("dropout", 0.08),
            ("weight_decay", 0.04),
            ("batch_size", 0.03),
        ),
        "importance_method": "fANOVA (Hutter et al., 2014)",
        "policy": "TPE learns from complete and pruned trials; a pruned trial is told with its last loss.",
        "notes": ("mlflow ui --backend-store-uri sqlite:///mlflow.db", "hpsearch run --sampler tpe --trials 100"),
        "generated": "2026-11-21 11:40 UTC",
    }
    return StudyView(**(values | changes))


def lifelike(n: int, seed: int = 0, **changes: Any) -> StudyView:
    """A study of n trials whose losses depend on the hyperparameters as those of real fine-tuning do: some pruned, some failed."""
    rng = random.Random(seed)
    return view(*(lifelike_trial(number, rng) for number in range(n)), **changes)


def lifelike_trial(number: int, rng: random.Random) -> TrialRecord:
    """One of them."""
    params: dict[str, Any] = {
        "learning_rate": 10 ** rng.uniform(-4, -1),
        "batch_size": rng.choice([16, 32, 64]),
        "epochs": rng.randint(4, 16),
        "weight_decay": 10 ** rng.uniform(-5, -1),
        "dropout": rng.uniform(0, 0.5),
        "frozen_layers": rng.randint(0, 6),
    }
    if number == 0:
        params = {name: entry["default"] for name, entry in SPACE.items()}
    off = abs(math.log10(params["learning_rate"]) + 1.9)
    floor = 0.32 + 0.25 * off**2 + 0.09 * max(0, params["frozen_layers"] - 3) + 0.1 * params["dropout"]
    rate = 0.25 + 0.5 / (1 + 2 * off)
    losses = [floor + (2.3 - floor) * math.exp(-rate * i) + rng.gauss(0, 0.015) for i in range(1, params["epochs"] + 1)]
    losses = [loss + (0.012 * max(0, i - 8)) for i, loss in enumerate(losses)]
    if params["learning_rate"] > 0.085:
        return failed(number, "the training loss became NaN in epoch 3: lower the learning rate", tuple(losses[:2]))
    if number > 5 and losses[min(3, len(losses) - 1)] > 1.15:
        losses = losses[: rng.randint(3, 5)]
    status = Status.PRUNED if len(losses) < params["epochs"] else Status.COMPLETE
    accuracies = tuple(max(0.1, 0.99 - 0.08 * loss - 0.12 * loss**2) for loss in losses)
    best = accuracies[losses.index(min(losses))]
    return record(number, status, tuple(losses), params=params, accuracy=best, accuracies=accuracies, seconds=0.11 * len(losses))


CRAFT: dict[str, dict[str, Any]] = {
    "optimizer": {"choices": ["adamw", "sgd"], "default": "adamw"},
    "momentum": {"low": 0.5, "high": 0.99, "default": 0.9, "when": {"optimizer": ["sgd"]}},
    "schedule": {"choices": ["constant", "cosine", "onecycle", "cyclical", "step"], "default": "cosine"},
    "crop": {"low": 0.3, "high": 1.0, "default": 1.0},
    "flip": {"choices": [0.0, 0.5], "default": 0.0},
    "rotate": {"low": 0.0, "high": 30.0, "default": 0.0, "when": {"flip": [0.5], "schedule": ["constant", "cosine", "onecycle"]}},
}


def crafted(n: int, seed: int = 0, **changes: Any) -> StudyView:
    """A lifelike study of choices and of hyperparameters that only some trials use, which fixes others to what is unusual."""
    rng, records = random.Random(seed), []
    for trial in lifelike(n, seed).records:
        params: dict[str, Any] = dict(trial.params)
        for name, entry in CRAFT.items():
            if all(params.get(parent) in values for parent, values in entry.get("when", {}).items()):
                drawn = rng.choice(entry["choices"]) if "choices" in entry else rng.uniform(entry["low"], entry["high"])
                params[name] = entry["default"] if trial.number == 0 else drawn
        records.append(replace(trial, params=params, effective=params))
    spec = SPEC | {"recipe": {"mixup": 0.2, "label_smoothing": 0.1, "clip_norm": 0.0}, "space": SPACE | CRAFT}
    shares = (("learning_rate", 0.5), ("optimizer", 0.2), ("crop", 0.1), ("momentum", 0.1), ("schedule", 0.06), ("rotate", 0.04))
    return view(*records, **({"spec": spec, "importance": shares} | changes))


# ---------------------------------------------------------------- another objective, data, classes

PETS = ("abyssinian", "beagle", "bengal", "boxer", "persian", "pug", "ragdoll", "siamese")
AWKWARD = ("<script>alert(1)</script>", "a name " * 40, "two\nlines", "\u05d7\u05ea\u05d5\u05dc", "\u202egnp.exe", "1", "1.0", HOSTILE)


def with_scores(record: TrialRecord, objective: str, classes: int = len(PETS)) -> TrialRecord:
    """The trial with all metrics, per-class results, and another objective."""

    def more(values: Any) -> dict[str, float]:
        share = values.get("accuracy")
        extra = {} if share is None else {"balanced_accuracy": 0.96 * share, "top5": min(1.0, share + 0.05)}
        return {**values, **extra}

    rng = random.Random(record.number)
    share = record.metrics.get("accuracy", 0.5)
    columns = {name: [min(1.0, share * rng.uniform(0.7, 1.1)) for _ in range(classes)] for name in ("precision", "recall", "f1")}
    per_class = {"images": [float(rng.randint(4, 60)) for _ in range(classes)], **columns} if record.metrics else {}
    curve = tuple(more(row) | {"images_per_second": 900.0} for row in record.curve)
    return replace(record, objective=objective, metrics=more(record.metrics), curve=curve, per_class=per_class)


def scored(study: StudyView, objective: str, names: tuple[str, ...] = PETS, **changes: Any) -> StudyView:
    """The study with another objective and classes of these names."""
    records = tuple(with_scores(r, objective, len(names)) for r in study.records)
    spec, facts = {**study.spec, "objective": objective}, {**study.facts, "classes": list(names)}
    return replace(study, spec=spec, facts=facts, records=records, **changes)


@cache
def thumbnail(seed: int, kind: str = "png", size: tuple[int, int] = (96, 96)) -> str:
    """A small picture as a data URI."""
    rng = random.Random(seed)
    image = Image.new("RGB", size, tuple(rng.randint(60, 220) for _ in range(3)))  # type: ignore[arg-type]
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, r = rng.randint(0, size[0]), rng.randint(0, size[1]), rng.randint(6, 30)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(rng.randint(0, 255) for _ in range(3)))
    file = io.BytesIO()
    image.save(file, format=kind.upper())
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def data_report(classes: tuple[str, ...] = PETS, seed: int = 0, **changes: Any) -> DataReport:
    """What a check of a folder of pets could have found."""
    rng = random.Random(seed)
    sizes = [rng.randint(20, 400) for _ in classes]
    pairs = tuple(
        Example(
            (f"{classes[0]}/img_{i:04}.jpg", f"{classes[-1]}/copies/IMG_{i + 400}.jpg"),
            f"distance {i % 4} of 64 bits",
            (thumbnail(i), thumbnail(i)),
        )
        for i in range(15)
    )
    odd = tuple(
        Example(
            (f"{classes[i % len(classes)]}/img_{i:04}.jpg",),
            "its 10 nearest neighbours are of another class",
            (thumbnail(50 + i, "jpeg", (120, 64)),),
        )
        for i in range(3)
    )
    values: dict[str, Any] = {
        "data": "/data/pets",
        "classes": classes,
        "counts": {
            "train": tuple(round(0.7 * n) for n in sizes),
            "val": tuple(round(0.15 * n) for n in sizes),
            "test": tuple(round(0.15 * n) for n in sizes),
        },
        "left_out": 2,
        "findings": (
            Finding("labels", "note", "3 images look mislabelled: look at them.", 3, odd),
            Finding("near-duplicates", "warning", "23 images of the validation split have a near-duplicate in training.", 23, pairs),
            Finding(
                "unreadable", "error", "2 files cannot be read: delete or repair them.", 2, (Example(("pug/broken.jpg",), "truncated"),)
            ),
            Finding("imbalance", "warning", "The largest class has 20 times the images of the smallest."),
        ),
        "facts": {
            "smallest difference that the validation images can show (points)": 3.4,
            "median image side (pixels)": 375,
            "digest": "ab12",
        },
    }
    return DataReport(**(values | changes))


def hostile_data() -> DataReport:
    """Names and texts that nobody should have."""
    uris = (
        "javascript:alert(1)",
        "https://example.org/x.png",
        "data:image/svg+xml;base64,PHN2Zy8+",
        'data:image/png;base64,AAAA" onerror="alert(1)',
        "data:text/html;base64,AAAA",
    )
    examples = tuple(Example((HOSTILE, name), HOSTILE, (uri, uri)) for name, uri in zip(AWKWARD, (*uris, *[thumbnail(1)] * 3), strict=True))
    findings = tuple(Finding(HOSTILE, level, HOSTILE, 99, examples) for level in ("note", "warning", "error"))
    return data_report(AWKWARD, data=HOSTILE, findings=findings, facts={HOSTILE: HOSTILE})


FULL = scored(lifelike(50), "balanced_accuracy", data=data_report())
"""A study with everything that a page can show."""
