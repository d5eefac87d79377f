"""After the search: confirmations and references are trained, and the test split is opened for the winner."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpsearch.errors import FixInput, FixSetup, Interrupted
from hpsearch.orchestrator import Orchestrator
from hpsearch.proof import Proof, again, next_number, outstanding, proof_of, ranked, repeats, wanted, winner_of
from hpsearch.protocols import Tracker
from hpsearch.runtime.trial_files import TrialFiles
from hpsearch.types import Facts, Say, StageStarted, StoredStudy, Trial, TrialEnded, TrialRecord, Verdict

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

    from hpsearch.executors.worker import Workforce

JUDGE = "hpsearch.finetune.judge:judge"
PROOF = "proof.json"  # in the study's folder


class Prover:
    """What is run beside one study's search, by the workers that it has."""

    def __init__(
        self,
        storage: RDBStorage,
        name: str,
        executor: Workforce,
        trackers: Sequence[Tracker],
        facts: Facts | None,
        stopped_by: Callable[[], int | None],
        say: Say,
        folder: Path,
    ) -> None:
        self.storage, self.name, self.executor, self.trackers = storage, name, executor, trackers
        self.folder, self.files = folder, TrialFiles(folder)
        self.facts, self.stopped_by, self.say = facts, stopped_by, say

    def study(self) -> StoredStudy:
        """As the storage has it now."""
        from hpsearch.search.catalog import read_study

        return read_study(self.storage, self.name)

    def prove(self, config: Mapping[str, Any]) -> str:
        """Everything that the study asks for beside its search; "interrupted" when it was cut short, else "".

        `config` is the kernel's.
        """
        while (stage := outstanding(self.study()))[1]:
            if self.train(*stage) == "interrupted":
                return "interrupted"
        study = self.study()
        winner = winner_of(study)
        reason = "interrupted" if self.stopped_by() is not None else ""
        if winner is None or reason:
            return reason
        if ranked(study) and self.files.find(winner.checkpoint) is None:
            reason = self.train("Training the winner again", (numbered(study, winner),))
            if reason == "interrupted":
                return reason
        try:
            self.open_test(config, winner)
        except Interrupted:
            return "interrupted"
        for run in self.study().runs:
            if run.origin != "winner":
                self.files.delete(run.checkpoint)
        return ""

    def train(self, title: str, trials: tuple[Trial, ...]) -> str:
        """One stage; why it ended."""
        from hpsearch.search.beside import ListedRuns

        for tracker in self.trackers:
            tracker.record(StageStarted(title, len(trials)))
        spec = self.study().spec
        objective, repeat = str(spec.get("objective", "val_loss")), int(spec.get("repeat", 0))
        trials = tuple(replace(trial, repeat=repeat) for trial in trials)
        with closing(ListedRuns(self.storage, self.name, objective, trials, self.folder)) as runs:
            for record in runs.taken:
                for tracker in self.trackers:
                    tracker.record(TrialEnded(record, None))
            loop = Orchestrator(
                runs,
                self.executor,
                self.trackers,
                self.files,
                budget=len(trials),
                stop=lambda: "interrupted" if self.stopped_by() else None,
                facts=self.facts,
                tidy=False,
            )
            reason = loop.loop()
            self.facts = loop.facts
        return reason

    def open_test(self, config: Mapping[str, Any], winner: TrialRecord) -> None:
        """Look at the test images with the winner's model, unless that was done; only where it was confirmed.

        Its other seeds and the references are measured by the way: nothing is chosen by it any more.
        """
        study = self.study()
        if not to_open(study, winner):
            return
        if self.files.find(winner.checkpoint) is None:
            self.say(f"Test: the winner, trial {winner.number}, has no weights, so the test images were not looked at", 0, 0)
            return
        try:
            asked = {**config, "checkpoints": measured_files(study, winner, self.files), "judge_split": "test"}
            verdict: Verdict = self.executor.aside(JUDGE, asked, self.say, self.stopped_by, "measuring the test images")
        except (FixInput, FixSetup) as error:
            self.say(f"Test: the test images could not be looked at: {error}", 0, 0)
            return
        remember(self.storage, study, winner, verdict)


def due(study: StoredStudy) -> bool:
    """Whether something that the study asks for beside its search has not been done."""
    winner = winner_of(study)
    if not wanted(study) or winner is None:
        return False
    return bool(outstanding(study)[1]) or to_open(study, winner)


def to_open(study: StoredStudy, winner: TrialRecord) -> bool:
    """Whether the test images are to be looked at: the winner was confirmed, and its model has not been measured."""
    opened = bool(study.openings) and study.openings[-1]["trial"] == winner.number
    return repeats(study.spec) is not None and bool(study.facts.get("test_images")) and not opened


def numbered(study: StoredStudy, winner: TrialRecord) -> Trial:
    """The run that makes the winner's weights again."""
    trial = again(winner)
    return replace(trial, number=next((run.number for run in study.runs if run.name == trial.name), next_number(study)))


def measured_files(study: StoredStudy, winner: TrialRecord, files: TrialFiles) -> list[tuple[str, str]]:
    """Returns names and files of what is measured: the winner's model first, then everything in the gain table that has weights."""
    records = {r.name: r for r in (*study.records, *study.runs)}
    named = [name for row in proof_of(study).rows for name in row.runs if name != winner.name]
    found = [(r.name, files.find(r.checkpoint)) for r in (winner, *(records[name] for name in named))]
    return [(name, str(path)) for name, path in found if path is not None]


def remember(storage: RDBStorage, study: StoredStudy, winner: TrialRecord, verdict: Verdict) -> int:
    """Record an opening of the test split; how many there have been now."""
    from hpsearch.search.beside import add_opening

    opening = {"at": time.time(), "trial": winner.number, "judged": [asdict(judged) for judged in verdict.judged]}
    return add_opening(storage, study.name, json.loads(json.dumps(opening)))


def write_proof(proof: Proof, folder: Path) -> None:
    """Write what was proven into the study's folder, as JSON."""
    (folder / PROOF).write_text(json.dumps(asdict(proof), indent=2) + "\n")


def flat(proof: Proof) -> dict[str, float]:
    """The proof's numbers by name, for whoever keeps plain numbers."""
    found = {f"proof/{row.name}/{key}": estimate.mean for row in proof.rows for key, estimate in row.scores.items()}
    found |= {f"proof/{row.name}/test_{key}": estimate.mean for row in proof.rows for key, estimate in row.test.items()}
    found |= {f"proof/{row.name}/seconds": row.seconds.mean for row in proof.rows if row.seconds is not None}
    found |= {f"gain/{gain.what.split()[-1]}/{key}": estimate.mean for gain in proof.gains for key, estimate in gain.points.items()}
    if proof.test is not None:
        found |= {"test/loss": proof.test.loss, **{f"test/{key}": value for key, value in proof.test.metrics.items()}}
        found |= {"test/forgetting": proof.test.forgetting.drop} if proof.test.forgetting else {}
    return found
