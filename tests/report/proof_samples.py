"""Studies that prove something, made by hand: every run is a law of its configuration with noise of its own, and read by `proof_of`."""

from __future__ import annotations

import math
import random
import zlib
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from report_samples import FACTS, lifelike, thumbnail, view, with_scores

from hpsearch.proof import outstanding, proof_of, winner_of
from hpsearch.report.tables import StudyView
from hpsearch.spec import parse_spec
from hpsearch.types import Example, Forgetting, Judged, Status, StoredStudy, Trial, TrialRecord

LOOKED = 1_760_000_000.0  # when the test images were first looked at


def run(trial: Trial, status: Status = Status.COMPLETE, objective: str = "val_loss") -> TrialRecord:
    """A run beside the search: from scratch is worse and slow, a linear probe quick, the learning rate matters."""
    setup, params = trial.setup, trial.params
    assert setup is not None
    rng = random.Random(setup.name)
    scratch, probe = setup.scratch, params["frozen_layers"] == 6
    off = abs(math.log10(float(str(params["learning_rate"]))) + 1.9)
    floor = 0.34 + 0.22 * off**2 + 0.4 * scratch + 0.15 * probe + rng.gauss(0, 0.02)
    pace, rows = 0.02 if probe else 0.35 if scratch else 0.3, []
    for epoch in range(1, int(str(params["epochs"])) + 1):
        loss = floor + (2.3 - floor) * math.exp(-0.6 * epoch / (2 if scratch else 1)) + rng.gauss(0, 0.005)
        shares = dict.fromkeys(("accuracy", "precision", "recall", "f1"), max(0.1, 0.99 - 0.08 * loss - 0.12 * loss**2))
        rows.append({"epoch": epoch, "val_loss": loss, "train_loss": 0.8 * loss, **shares, "seconds": pace * epoch})
    best = min(rows, key=lambda row: row["val_loss"])
    done = status is Status.COMPLETE
    found = TrialRecord(
        number=trial.number,
        status=status,
        params=params,
        origin=trial.origin,
        attempt=1,
        val_loss=best["val_loss"] if done else None,
        best_epoch=int(best["epoch"]) if done else None,
        seconds=rows[-1]["seconds"],
        started=LOOKED,
        ended=LOOKED,
        metrics={key: best[key] for key in ("accuracy", "precision", "recall", "f1")} if done else {},
        effective=params,
        curve=tuple(rows),
        checkpoint=None,
        error=None if done else "the training loss became NaN in epoch 3",
        setup=setup,
    )
    return with_scores(found, objective)


def stored(names: tuple[str, ...] = (), fails: tuple[str, ...] = (), stop: int | None = None, **asked: Any) -> StoredStudy:
    """A study whose proof has run, but for the runs after `stop`; those of a name in `fails` failed."""
    spec = parse_spec({"references": True, "confirm": "3x4", **asked}).resolved()
    names = names or tuple(map(str, range(10)))
    counts = {"train": [5] * len(names), "val": [40] * len(names), "test": [130] * len(names)}
    split = {"train_images": 5 * len(names), "val_images": 40 * len(names), "test_images": 130 * len(names)}
    facts = {**FACTS, "blocks": 6, "classes": list(names), "class_counts": counts, **split}
    records = tuple(with_scores(r, spec["objective"], len(names)) for r in lifelike(16).records)
    study = StoredStudy("proven", spec, facts, records)
    while (stage := outstanding(study)[1]) and (stop is None or len(study.runs) < stop):
        fate = {t.number: Status.FAILED if t.setup and any(f in t.setup.name for f in fails) else Status.COMPLETE for t in stage}
        study = replace(study, runs=(*study.runs, *(run(t, fate[t.number], spec["objective"]) for t in stage)))
    return study if stop is None else replace(study, runs=study.runs[:stop])


def judged(name: str, classes: int, shares: float, mistakes: tuple[Example, ...] = ()) -> Judged:
    """A model that tells classes with this accuracy, and takes most others for a neighbour."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    actual = np.repeat(np.arange(classes), 130)
    missed = (actual + rng.choice([1, 1, 1, 2, 5], len(actual))) % classes
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (actual, np.where(rng.random(len(actual)) < shares, actual, missed)), 1)
    confusion = counts.tolist()
    right = [confusion[i][i] / 130 for i in range(classes)]
    share = sum(right) / classes
    per_class = {"images": [130.0] * classes, "precision": right, "recall": right, "f1": right}
    metrics = {"accuracy": share, "balanced_accuracy": share, "precision": share, "recall": share, "f1": share, "top5": 1.0}
    lost = Forgetting("rendered characters", 3100, 0.974, 0.526, 0.972, 0.955) if mistakes else None
    return Judged(name, 130 * classes, 2.3 * (1 - share), metrics, per_class, tuple(map(tuple, confusion)), lost, mistakes)


def opened(study: StoredStudy, trial: int | None = None, mistakes: tuple[Example, ...] = (), at: float = LOOKED) -> StoredStudy:
    """The study after another look at the test images, with the winner or another trial."""
    best = winner_of(study)
    number = trial if trial is not None else best.number if best else 0
    mistakes = mistakes or tuple(Example((f"test/{i:05}.png",), f"{i} taken for {i + 1} (9{9 - i} %)", (thumbnail(i),)) for i in range(9))
    classes, shares = len(study.facts["classes"]), {"scratch": 0.84, "probe": 0.9, "default": 0.91}
    names = [n for row in proof_of(study).rows for n in row.runs if not n.startswith("trial-")]
    rest = [judged(n, classes, shares.get(n.split("-")[0], 0.93)) for n in names]
    first = judged(f"trial-{number:04d}", classes, 0.93, mistakes)
    opening = {"at": at, "trial": number, "judged": [asdict(j) for j in (first, *rest)]}
    return replace(study, openings=(*study.openings, opening))


def shown(study: StoredStudy, **changes: Any) -> StudyView:
    """What the report is given of a study."""
    known = {"name": study.name, "spec": study.spec, "facts": study.facts, "proof": proof_of(study), "runs": study.runs}
    return view(*study.records, **(known | changes))
