"""The verbs that come after a study: its model as a folder of its own, and what that model says of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpsearch.errors import FixInput, FixSetup, NotFound
from hpsearch.places import Place, show, winning
from hpsearch.proof import winner_of
from hpsearch.proving import remember
from hpsearch.runtime.trial_files import TrialFiles
from hpsearch.types import Judged, Say, Status, StoredStudy, TrialRecord, say_nothing

if TYPE_CHECKING:
    from hpsearch.finetune.export import Exported
    from hpsearch.finetune.predict import Prediction


def export(
    where: Place, name: str | None, out: Path, trial: int | None = None, force: bool = False, with_data: bool = True, say: Say = say_nothing
) -> Exported:
    """Write the model of the study's winner, or that of `trial`, into the folder `out`; see `finetune.export`.

    Raises NotFound without such a trial, FixSetup when its weights are gone, FixInput when `out` is taken or the data has changed.
    """
    stored = show(where, name)
    record = chosen(stored, trial)
    weights = checkpoint(where, stored, record)
    say("Loading torch", 0, 0)
    from hpsearch.finetune.card import Winner
    from hpsearch.finetune.export import export as write

    counts = {status.value: sum(r.status is status for r in stored.records) for status in Status}
    default = next((r for r in stored.records if r.number == 0), None)
    seen = [Judged.from_json(j) for o in stored.openings if o["trial"] == record.number for j in o["judged"] if j["name"] == record.name]
    winner = Winner(
        study=stored.name,
        spec=stored.spec,
        facts={**stored.facts, **stored.facts.get("models", {}).get(str(record.params.get("model")), {})},
        record=record,
        default=default,
        counts={status: n for status, n in counts.items() if n},
        checkpoint=weights,
        folder=where.runs(stored.name),
        test=seen[-1] if seen else None,
        openings=len(stored.openings),
    )
    return write(winner, out, force, with_data, say)


def chosen(stored: StoredStudy, number: int | None) -> TrialRecord:
    """The trial to export; NotFound when there is none, or it is not complete."""
    best = winning(stored)
    if number is None:
        return best
    record = next((r for r in stored.records if r.number == number), None)
    if record is None:
        raise NotFound(
            f"'{stored.name}' has no trial {number}: its trials are 0 to {len(stored.records) - 1}; the best one is {best.number}"
        )
    if record.status is not Status.COMPLETE:
        raise NotFound(f"trial {number} of '{stored.name}' is {record.status.lower()}, and only complete trials keep their weights")
    return record


def checkpoint(where: Place, stored: StoredStudy, record: TrialRecord) -> Path:
    """The file of a trial's weights, in the study's folder."""
    if record.reused:
        raise FixSetup(
            f"trial {record.number} of '{stored.name}' was not trained here but in {record.reused}, which another sampler of the same "
            "comparison asked for first: export that one, if it is its study's best, or run this configuration anew"
        )
    if record.checkpoint is None:
        raise FixSetup(f"trial {record.number} of '{stored.name}' kept no weights: it was not trained by hpsearch's kernel")
    folder = where.runs(stored.name)
    if (path := TrialFiles(folder).find(record.checkpoint)) is not None:
        return path
    best = winner_of(stored)
    if best is not None and best.number != record.number:
        raise FixSetup(
            f"the weights of trial {record.number} are deleted: only those of the best trial are kept. Leave out --trial to export "
            f"trial {best.number}, or run the study anew with its hyperparameters fixed"
        )
    raise FixSetup(
        f"the weights of trial {record.number} are not at {folder / record.checkpoint}: if the study was run on another "
        "machine, export there or bring the file here; if they were deleted, run the study anew under another --name"
    )


@dataclass(frozen=True, slots=True)
class Opening:
    """A look at a study's test images."""

    study: str
    trial: int
    times: int  # they have been looked at, this time included
    new: bool  # whether this time is one of them: what was seen of a trial before is told without looking again
    judged: Judged


def open_test(where: Place, name: str | None, trial: int | None = None, again: bool = False, say: Say = say_nothing) -> Opening:
    """Measure the winner's model, or that of `trial`, on the test images, and record that they were looked at.

    Raises FixInput when they were looked at for another trial, unless `again` says to do it all the same; NotFound and FixSetup as
    `export` does.
    """
    stored = show(where, name)
    record = chosen(stored, trial)
    times, label = len(stored.openings), record.name
    for opening in reversed(stored.openings):
        if opening["trial"] == record.number:
            judged = next(Judged.from_json(j) for j in opening["judged"] if j["name"] == label)
            return Opening(stored.name, record.number, times, False, judged)
    if stored.openings and not again:
        last = stored.openings[-1]
        when = f"{datetime.fromtimestamp(last['at']):%Y-%m-%d %H:%M}"
        raise FixInput(
            f"the test images of '{stored.name}' have been looked at already ({when}, trial {last['trial']}). Who looks again for another "
            "trial begins to choose by them, and what they say is no longer news: add --again to do it all the same; it is recorded"
        )
    weights = checkpoint(where, stored, record)
    say("Loading torch", 0, 0)
    from hpsearch.finetune.judge import judge
    from hpsearch.finetune.prepare import prepare
    from hpsearch.search.store import opened

    config = {**stored.spec, "folder": str(where.runs(stored.name))}
    prepared = prepare(config, say, need_weights=False)
    verdict = judge({**config, "index": prepared.index, "checkpoints": [(label, str(weights))], "judge_split": "test"}, say)
    with opened(where.storage) as storage:
        times = remember(storage, stored, record, verdict)
    return Opening(stored.name, record.number, times, True, verdict.judged[0])


def predict(
    folder: Path, images: Sequence[Path], top: int, device: str, code: str | None = None, say: Say = say_nothing
) -> list[Prediction]:
    """What the model in a folder says of images, and of those in folders. Raises FixInput or FixSetup before the first image.

    `code`: the function that the model may import, if it is one's own.
    """
    if top < 1:
        raise FixInput(f"--top is a number of classes from 1, not {top}")
    say("Loading torch", 0, 0)
    from hpsearch.finetune.predict import expand, open_model
    from hpsearch.finetune.predict import predict as look

    files = expand(images)
    return list(look(open_model(folder, device, code), files, top, say))


def prediction_json(prediction: Prediction) -> dict[str, Any]:
    """One image, JSON-able."""
    if prediction.error:
        return {"image": prediction.image, "error": prediction.error}
    return {"image": prediction.image, "top": [{"class": name, "probability": share} for name, share in prediction.top]}
