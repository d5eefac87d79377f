"""What goes over the wire, as the OpenAPI document describes it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hpsearch.comparing import SAMPLERS

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class Given(BaseModel):
    """Base of what is sent here: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Samplers(Given):
    """Samplers to compare on a study, each with a study of its own in each repeat."""

    samplers: list[str] = Field(default_factory=lambda: list(SAMPLERS), min_length=2, max_length=20)
    repeats: int = Field(8, ge=1, le=1000)
    initial: int = Field(5, ge=1, le=1_000_000, description="trials that all samplers of a repeat begin with")
    seconds: float | None = Field(None, gt=0, allow_inf_nan=False, description="of training for each study, in place of a number of trials")


class Submission(Given):
    """A study to run, as its file has it: as a mapping, or as text."""

    study: dict[str, Any] | None = Field(None, description="the keys of a study file", examples=[{"trials": 12, "sampler": "tpe"}])
    yaml: str | None = Field(None, description="a study file's text, in place of `study`", max_length=200_000)
    compare: Samplers | None = Field(None, description="compare samplers on it, as `hpsearch compare` does, instead of running it once")
    priority: int = Field(0, ge=-1000, le=1000, description="larger ones run first")
    share: str = Field("", max_length=64, pattern=r"^[\w.@-]*$", description="for whom; equal priorities get equal shares of the machine")

    @model_validator(mode="after")
    def one_of_two(self) -> Submission:
        """Refuse both forms at once, and none."""
        if (self.study is None) == (self.yaml is None):
            raise ValueError("give the study as `study` or as `yaml`, one of them")
        return self


class Revision(Given):
    """What can be changed of a study while it runs."""

    trials: int | None = Field(None, ge=1, le=1_000_000, description="trials in all; more than before")
    priority: int | None = Field(None, ge=-1000, le=1000)


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str


class Overview(BaseModel):
    """A study as a row."""

    study: str
    state: str = Field(description="queued, running, paused, done, failed, cancelled; stored: in the storage, not in the queue")
    wanted: str | None = Field(description="what a running study is to become once its trials have stopped")
    note: str
    trials: int = Field(description="the budget; of a comparison all studies together, 0 where it is in seconds")
    ended: int
    counts: dict[str, int]
    best_score: float | None
    default_score: float | None
    priority: int
    share: str
    submitted: float | None = Field(description="seconds since the epoch (UTC)")
    started: float | None
    finished: float | None
    studies: list[str] = Field(description="of a comparison: those that have begun; empty for a study")


class TrialRow(BaseModel):
    """A trial."""

    number: int
    status: Literal["WAITING", "RUNNING", "PAUSED", "COMPLETE", "PRUNED", "FAILED"]
    origin: str
    attempt: int
    params: dict[str, Any]
    score: float | None
    val_loss: float | None
    metrics: dict[str, float | None]
    best_epoch: int | None
    epochs_done: int
    seconds: float | None
    started: float | None
    ended: float | None
    error: str | None
    remark: str


class Study(Overview):
    """A study with what the storage knows of it."""

    objective: str | None = None
    best: dict[str, Any] | None = None
    default: dict[str, Any] | None = None
    gain: float | None = Field(None, description="of the best trial over the default recipe; more is better")
    spec: dict[str, Any]
    facts: dict[str, Any]
    warnings: list[str]


class Studies(BaseModel):
    """A page of the list."""

    total: int
    offset: int
    studies: list[Overview]


class Trials(BaseModel):
    """A page of trials."""

    total: int
    offset: int
    trials: list[TrialRow]


class TrialDetail(TrialRow):
    """A trial with its curve, and what it says."""

    diagnosis: str | None
    effective: dict[str, Any]
    curve: list[dict[str, float | None]]


class Accepted(BaseModel):
    """What was asked for will be done."""

    study: str
    accepted: str


class Health(BaseModel):
    """Whether the server gets on."""

    status: Literal["ok", "degraded"]
    problem: str
    version: str
    queue: dict[str, int]


class Device(BaseModel):
    """A processor, or a GPU."""

    name: str
    busy: float
    memory: int
    memory_used: int
    studies: list[str]
