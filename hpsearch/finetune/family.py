"""A kernel for every model of a study and every fold that is asked for, on one device; each is built when its first trial comes."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hpsearch.finetune.context import DeviceContext
from hpsearch.finetune.features import Features
from hpsearch.finetune.kernel import FineTuneKernel, Shared, context_of
from hpsearch.finetune.names import choices_of
from hpsearch.finetune.parcel import unpacked
from hpsearch.protocols import Session
from hpsearch.types import Facts, Job, Outcome, Status, Trial


@dataclass(frozen=True, slots=True)
class Member:
    """Which kernel a trial needs."""

    model: str
    fold: tuple[int, int] | None = None  # i of n


class Family:
    """Fine-tunes the models of a study; `config` as `FineTuneKernel` has it and, of a study with several, what `prepare` found:

    indexes (by model), models (what each is, by name) and data_digest (of all of their images).
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config, self.models = config, choices_of(config)
        self.context: DeviceContext = context_of(config)
        self.kernels: dict[Member, FineTuneKernel] = {}
        self.live: Counter[Member] = Counter()  # sessions

    # ---------------------------------------------------------------- kernels

    def kernel(self, member: Member) -> FineTuneKernel:
        """The member's kernel; it loads nothing yet."""
        if member not in self.kernels:
            own = dict(self.config)
            if len(self.models) > 1:
                workers = own["workers"] if isinstance(own.get("workers"), int) else 1
                own["memory"] = int(own.get("memory") or self.context.memory_budget(workers)) // len(self.models)
                own |= {"model": member.model, "index": own.get("indexes", {}).get(member.model)}
            if member.fold is not None:
                own["fold"] = member.fold
            # A model's folds follow one another, so two sets of numbers will do for each.
            place = 2 * self.models.index(member.model) + (member.fold is not None)
            first = place * self.context.slots(own.get("trials_per_device", "auto"))
            self.kernels[member] = FineTuneKernel(own, self.context, member, first)
        return self.kernels[member]

    def loaded(self, member: Member) -> Shared | None:
        """What the member's trials share, where it was loaded."""
        shared: Shared | None = self.context.built.get(member)
        return shared

    def make_way(self, member: Member) -> bool:
        """Let go of what would take the room of a run that begins; False while another fold of its model is at work."""
        idle = [other for other in self.kernels if other != member and not self.live[other]]
        for other in idle:
            if other.fold is not None and (member.fold is None or other.model == member.model):
                self.drop(other)
        if member.fold is None:
            return True
        if not self.live.total():
            for other in idle:
                if other.fold is None and (shared := self.loaded(other)) is not None:
                    forget(shared.features)
        return not any(other.fold is not None and other.model == member.model for other in self.kernels if other != member)

    def drop(self, member: Member) -> None:
        """A fold is done with."""
        del self.kernels[member]
        shared: Shared | None = self.context.built.pop(member, None)
        if shared is not None:
            forget(shared.features)
            shared.packing.crowd.quit(shared.packing.slots)
            del shared
            gc.collect()  # networks and their slots know one another

    # ---------------------------------------------------------------- a kernel like others

    def facts(self) -> Facts:
        """Load the default recipe's model and describe it; of the others, what `prepare` found."""
        facts = self.kernel(Member(self.models[0])).facts()
        if len(self.models) == 1:
            return facts
        prepared = self.config.get("models", {})
        each = {name: prepared.get(name) or described(self.kernel(Member(name)).facts()) for name in self.models}
        values = {**facts.values, "models": each, "blocks": max(model["blocks"] for model in each.values())}
        return replace(facts, values=values | ({"data_digest": self.config["data_digest"]} if "data_digest" in self.config else {}))

    def session(self, job: Job) -> Session:
        """Train the job's trials one after the other, each by the kernel of its model and fold."""
        for trial in job.trials:
            member = member_of(trial, self.models[0])
            if member.model not in self.models:
                yield (Outcome(trial.number, Status.FAILED, error=f"the study has no model {member.model}: {', '.join(self.models)}"),)
                continue
            while not self.make_way(member):
                yield ()
            self.live[member] += 1
            try:
                kernel = self.kernel(member)
                if len(self.models) > 1:
                    trial = within(trial, kernel)
                yield from kernel.session(Job(job.id, (trial,)))
            finally:
                self.live[member] -= 1

    def keep(self) -> None:
        """From now on a trial that is stopped leaves the state from which it can go on."""
        self.context.keeping = True

    def worn(self) -> str:
        """Why this process should be replaced."""
        return next((why for kernel in self.kernels.values() if (why := kernel.worn())), "")


def member_of(trial: Trial, default: str) -> Member:
    """The kernel that a trial needs."""
    setup = trial.setup
    fold = None if setup is None or setup.fold is None else (setup.fold, setup.folds)
    return Member(str(trial.params.get("model", default)), fold)


def within(trial: Trial, kernel: FineTuneKernel) -> Trial:
    """The trial with all blocks of its model frozen where it asks for more than there are."""
    asked = {**kernel.fixed, **trial.params}.get("frozen_layers")
    blocks = len(kernel.resident().model.blocks)
    return replace(trial, params={**trial.params, "frozen_layers": blocks}) if isinstance(asked, int) and asked > blocks else trial


def described(facts: Facts) -> dict[str, Any]:
    """What a study of several models says of each."""
    return {key: facts.values[key] for key in ("parameters", "blocks", "image_size", "weights")}


def forget(features: Features) -> None:
    """Let go of kept activations; they can be computed again, the same to the last bit."""
    features.make_room(features.budget)


def make(config: Mapping[str, Any]) -> Family:
    """Entry point for executors; with `fetch`, one whose machine may lack the study's files: see `parcel`."""
    return Family(unpacked(config))
