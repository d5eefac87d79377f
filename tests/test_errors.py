from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpsearch import errors
from hpsearch.errors import (
    CODES,
    ChooseAnotherName,
    FixInput,
    FixSetup,
    HpsearchError,
    Interrupted,
    LookCloser,
    NotFound,
    WaitOrStop,
    exit_code,
    http_status,
    nearest,
)


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (FixInput("x"), 2, 422),
        (ChooseAnotherName("x"), 2, 409),
        (NotFound("x"), 2, 404),
        (FixSetup("x"), 1, 503),
        (WaitOrStop("x"), 1, 423),
        (LookCloser("x"), 3, 409),
        (HpsearchError("x"), 1, 500),
        (Interrupted("x", 2), 130, 499),
        (Interrupted("x", 15), 143, 499),
        (Interrupted("x", 1), 129, 499),
    ],
)
def test_every_error_has_its_exit_code_and_status(error, code, status):
    assert (exit_code(error), http_status(error)) == (code, status)


@pytest.mark.parametrize("kind", [kind for kind, _, _ in CODES])
def test_every_error_travels_between_processes(kind):
    error = kind("what and why", 15) if kind is Interrupted else kind("what and why")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), exit_code(copy)) == (kind, "what and why", exit_code(error))


def test_every_error_class_stands_in_the_table():
    classes = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HpsearchError)}
    assert {kind for kind, _, _ in CODES} == classes


def test_the_table_is_ordered_most_specific_first():
    kinds = [kind for kind, _, _ in CODES]
    for i, kind in enumerate(kinds):
        assert not any(issubclass(later, kind) for later in kinds[i + 1 :])


def test_an_error_that_nobody_listed_gets_the_row_of_its_parent():
    class Fresh(ChooseAnotherName): ...

    assert (exit_code(Fresh("x")), http_status(Fresh("x"))) == (2, 409)


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("tpee", ("grid", "tpe"), "did you mean 'tpe'?"),
        ("TPE", ("grid", "tpe"), "did you mean 'tpe'?"),
        ("learnign_rate", ("dropout", "learning_rate"), "did you mean 'learning_rate'?"),
        ("xyz", ("grid", "tpe"), "known: grid, tpe"),
        ("", ("tpe", "grid"), "known: grid, tpe"),
        ("tpe", (), "known: "),
    ],
)
def test_a_hint_is_the_nearest_name_or_all_of_them(word, known, hint):
    assert nearest(word, known) == hint


@settings(deadline=None)
@given(st.text(), st.lists(st.text(min_size=1), min_size=1))
def test_a_hint_only_ever_names_valid_names(word, known):
    hint = nearest(word, known)
    assert hint.startswith("known: ") or any(hint == f"did you mean '{name}'?" for name in known)
