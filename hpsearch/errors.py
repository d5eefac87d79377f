"""The errors of hpsearch, each named by what the caller should do.

HpsearchError
├── FixInput          the request is wrong: change it and try again
│   └── ChooseAnotherName   a study of this name exists and is another study
├── FixSetup          the machine or its files are not as needed: repair them and try again
├── WaitOrStop        somebody else holds the study: wait, or stop them
├── NotFound          no such study or trial
├── LookCloser        what was checked is not as it should be: read what was printed
└── Interrupted       stopped on request; the same command goes on

A failed trial is a value (`types.Outcome`), never an exception.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HpsearchError(Exception):
    """Base class; the message says what is wrong, why, and what to do now."""


class FixInput(HpsearchError):
    """The request is wrong (unknown name, contradictory range, bad file): nothing was created."""


class ChooseAnotherName(FixInput):
    """A study with this name exists and differs in what makes results comparable."""


class FixSetup(HpsearchError):
    """Storage, folder, device or package is not usable: repair it and repeat the command."""


class WaitOrStop(HpsearchError):
    """Another process owns this study at the moment."""


class NotFound(HpsearchError):
    """No study or trial of this name."""


class LookCloser(HpsearchError):
    """A check ended, and what it looked at is not as it should be; what was found has been told."""


class Interrupted(HpsearchError):
    """Stopped by a signal after a neat shutdown; `signal_number` says which."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, signal_number)  # both, for pickle
        self.signal_number = signal_number

    def __str__(self) -> str:
        return str(self.args[0])


# Most specific first: (class, exit code, HTTP status). Exit 2 is what click, optuna, mlflow and ray use for bad usage.
CODES: tuple[tuple[type[HpsearchError], int, int], ...] = (
    (ChooseAnotherName, 2, 409),
    (FixInput, 2, 422),
    (NotFound, 2, 404),
    (WaitOrStop, 1, 423),
    (FixSetup, 1, 503),
    (LookCloser, 3, 409),
    (Interrupted, 130, 499),
    (HpsearchError, 1, 500),
)


def exit_code(error: HpsearchError) -> int:
    """Exit code of a command that ended with `error`; an interruption gives 128 + its signal."""
    if isinstance(error, Interrupted):
        return 128 + error.signal_number
    return next(code for kind, code, _ in CODES if isinstance(error, kind))


def http_status(error: HpsearchError) -> int:
    """HTTP status of a request that ended with `error`."""
    return next(status for kind, _, status in CODES if isinstance(error, kind))


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown word: the nearest valid name, or all of them when none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"
