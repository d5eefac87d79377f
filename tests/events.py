"""The events of a small study: a default recipe that completes, a pruned, a failed and a better trial."""

import math

from hpsearch.spec import parse_spec
from hpsearch.types import (
    EpochDone,
    Progress,
    Status,
    StudyEnded,
    StudyStarted,
    Trial,
    TrialEnded,
    TrialRecord,
    TrialStarted,
    WorkerReady,
)
from tests.kernels import PARAMS

AT = 1_780_000_000.0  # seconds since the epoch


def progress(trial, epoch, loss):
    return Progress(trial, epoch, 4, loss, loss / 2, {"accuracy": 0.5 + 0.1 * epoch, "f1": 0.5, "learning_rate": 1e-3}, 0.5 * epoch)


def record(trial, status, losses, error=None):
    rows = [progress(trial, e, loss) for e, loss in enumerate(losses, 1)]
    best = min(rows, key=lambda p: p.val_loss, default=None)
    return TrialRecord(
        number=trial,
        status=status,
        params={**PARAMS, "dropout": 0.1 * trial},
        origin="default" if trial == 0 else "sampled",
        attempt=1,
        val_loss=best.val_loss if best and status is not Status.FAILED else None,
        best_epoch=best.epoch if best else None,
        seconds=0.5 * len(rows),
        started=AT + 10 * trial,
        ended=AT + 10 * trial + 0.5 * len(rows),
        metrics=dict(best.metrics) if best else {},
        effective={**PARAMS, "dropout": 0.1 * trial},
        curve=tuple(p.row() for p in rows),
        checkpoint=None,
        error=error,
    )


RECORDS = (
    record(0, Status.COMPLETE, [2.0, 1.5, 1.0, 1.1]),
    record(1, Status.PRUNED, [3.0, 2.9]),
    record(2, Status.FAILED, [math.inf], "diverged: validation loss is inf"),
    record(3, Status.COMPLETE, [1.0, 0.8, 0.7, 0.6]),
)


def trial_events(r):
    yield TrialStarted(Trial(r.number, r.params, r.attempt, r.origin), r.started)
    for row in r.curve:
        yield EpochDone(progress(r.number, row["epoch"], row["val_loss"]), False, r.started + row["seconds"])


def study_events(name="digits-tpe", artifacts=()):
    spec = parse_spec({"name": name, "trials": 4}).resolved()
    yield StudyStarted(name, "0123abcd", spec, (), 4, 2)
    yield WorkerReady(
        0, {"model": "glyphnet", "parameters": 170_298, "data": "digits", "train_images": 50, "data_digest": "ab12", "device": "cpu"}
    )
    best = None
    for r in RECORDS:
        yield from trial_events(r)
        best = r.number if r.status is Status.COMPLETE else best
        yield TrialEnded(r, best)
    yield StudyEnded("budget", RECORDS[3], RECORDS[0], artifacts)
