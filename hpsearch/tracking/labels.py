"""What a study is called in MLflow: tags, the note that its page shows, data sets."""

from __future__ import annotations

import getpass
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hpsearch.types import Status, StudyStarted, TrialRecord

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

APART = ("versions", "commit", "sessions")  # facts that are not a tag as they are
CONTEXTS = {"train": "training", "val": "validation", "test": "test"}  # as MLflow calls them
LIMIT = 4000  # characters of a tag; MLflow takes 8000


def study_tags(event: StudyStarted) -> dict[str, str]:
    """What tells studies apart in a list of runs."""
    spec = event.spec
    tags = {f"hpsearch.{key}": str(spec[key])[:LIMIT] for key in ("sampler", "model", "weights", "objective", "data")}
    return tags | {"hpsearch.pruner": str(spec["pruner"]["name"]), "hpsearch.score": f"best_{spec['objective']}"}


def source_tags() -> dict[str, str]:
    """As MLflow's own columns have it."""
    tags = {"mlflow.source.name": "hpsearch", "mlflow.source.type": "LOCAL"}
    with suppress(OSError, KeyError):  # a user without a name, as in some containers
        tags["mlflow.user"] = getpass.getuser()
    return tags


def facts_tags(facts: Mapping[str, Any]) -> dict[str, str]:
    """What a worker found, a tag each; versions and git commit under the names that MLflow and earlier studies have for them."""
    names = {"weights": "weights_loaded"}  # which file, and what of it did not fit; `hpsearch.weights` is what was asked for
    tags = {f"hpsearch.{names.get(key, key)}": str(value)[:LIMIT] for key, value in facts.items() if key not in APART}
    for name, value in facts.get("versions", {}).items():
        tags["hpsearch.version" if name == "hpsearch" else f"hpsearch.version.{name}"] = value
    if commit := facts.get("commit"):
        tags |= {"mlflow.source.git.commit": commit["id"], "hpsearch.git.dirty": str(commit["changed"]).lower()}
    return tags


def datasets(data: str, facts: Mapping[str, Any]) -> list[DatasetInput]:
    """The study's images as MLflow's data sets, one for each split."""
    import json

    from mlflow.entities import Dataset, DatasetInput, InputTag

    digest, inputs = str(facts.get("data_digest", ""))[:30], []
    for split, context in CONTEXTS.items():
        images = facts.get(f"{split}_images")
        if images and digest:
            profile = json.dumps({"images": images, "classes": len(facts.get("classes", ()))})
            source = json.dumps({"uri": data})
            found = Dataset(f"{data}: {split}"[-500:], f"{digest}-{split}", "hpsearch", source, profile=profile)
            inputs.append(DatasetInput(found, [InputTag("mlflow.data.context", context)]))
    return inputs


def run_link(experiment: str, run: str, text: str) -> str:
    """A link that works in MLflow's own page, wherever it is served."""
    return f"[{text}](#/experiments/{experiment}/runs/{run})" if run else text


def note(
    study: str,
    winner: TrialRecord | None,
    link: str,
    default: TrialRecord | None,
    records: Iterable[TrialRecord],
    scores: Mapping[str, float],
    report: bool,
) -> str:
    """The study in Markdown: winner, gain, configuration, and where to look on; `link` leads to the winner's run."""
    counts = [(status, sum(r.status is status for r in records)) for status in (Status.COMPLETE, Status.PRUNED, Status.FAILED)]
    listed = ", ".join(f"{n:,} {status.lower()}" for status, n in counts if n)
    lines = [f"**{study}**: {listed or 'no trial has ended'}."]
    if winner is not None and winner.score is not None:
        objective = winner.objective
        lines.append(f"**Best: {link}**, {told(objective, winner.score)} at epoch {winner.best_epoch}.")
        if default is not None and default.score is not None and default.number != winner.number:
            lines.append(f"The default recipe (trial 0) has {told(objective, default.score)}.")
        if "test/accuracy" in scores:
            lines.append(f"On the test images: {told('accuracy', scores['test/accuracy'])}.")
        lines.append(table(winner, default))
        lines.append(f"To compare trials, choose their runs: the score is the metric `best_{objective}`, hyperparameters are parameters.")
    lines.append(("The report is `report.html` among the artifacts. " if report else "") + f"`hpsearch report {study}` writes it anew.")
    return "\n\n".join(lines)


def table(winner: TrialRecord, default: TrialRecord | None) -> str:
    """The winner's configuration beside the default one."""
    rows = [f"| {key} | {short(value)} | {short(default.params.get(key)) if default else ''} |" for key, value in winner.params.items()]
    return "\n".join(["| | best | default |", "|---|---|---|", *rows])


def short(value: Any) -> str:
    """A hyperparameter's value as a person writes it."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def told(objective: str, score: float) -> str:
    """A score with its unit."""
    return f"{objective} {score:.4f}" if objective == "val_loss" else f"{objective} {100 * score:.1f} %"
