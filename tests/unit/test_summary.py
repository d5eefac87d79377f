"""What the last lines of a run claim."""

from dataclasses import fields, replace

import pytest

from hpsearch.summary import gain
from hpsearch.types import Status, TrialRecord


def record(number, accuracy, loss):
    blank = {f.name: None for f in fields(TrialRecord) if f.name not in ("setup", "reused", "remark", "objective", "per_class")}
    made = TrialRecord(**(blank | {"number": number, "status": Status.COMPLETE, "params": {}, "curve": ()}))
    return replace(made, val_loss=loss, metrics={"accuracy": accuracy})


@pytest.mark.parametrize(
    ("after", "loss", "says"),
    [
        (0.93, 0.30, "Verdict: within the noise"),
        (0.98, 0.20, "Verdict: more than chance, on one seed"),
        (0.80, 0.20, "Verdict: better in val_loss and worse in accuracy by more than chance"),
        (0.88, 0.20, "Verdict: within the noise"),
    ],
)
def test_a_gain_inside_the_noise_that_the_check_measured_is_called_that(after, loss, says):
    text = " ".join(" ".join(gain(record(4, after, loss), record(0, 0.90, 0.40), 0.042)).split())
    assert says in text
    assert "from 4.2 points on" in text


def test_nothing_is_said_of_noise_that_nobody_measured():
    assert not [line for line in gain(record(4, 0.93, 0.30), record(0, 0.90, 0.40)) if "Verdict" in line]


def test_every_line_fits_a_terminal():
    assert all(len(line) <= 80 for line in gain(record(4, 0.93, 0.30), record(0, 0.90, 0.40), 0.042))
