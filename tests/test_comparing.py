"""What may be asked of a comparison: errors, names, the order of its studies."""

import math

import pytest

from hpsearch.comparing import check_free, contest, describe_overlap
from hpsearch.errors import ChooseAnotherName, FixInput
from hpsearch.spec import StudySpec


def specs(*samplers, trials=6, **more):
    return [StudySpec.model_validate({"sampler": sampler, "trials": trials, **more}) for sampler in samplers]


@pytest.mark.parametrize(
    ("samplers", "asked", "message"),
    [
        (["random"], {}, "at least two samplers"),
        (["tpe", "tpe"], {}, "at least two samplers"),
        (["random", "tpe", "tpe"], {}, "names tpe twice"),
        (["random", "tpe"], {"repeats": 0}, "--repeats must be 1 or more, got 0"),
        (["random", "tpe"], {"initial": 0}, "--initial must be 1 or more, got 0"),
        (["random", "tpe"], {"name": "digits.yaml"}, "could not be told from a study file"),
        (["random", "tpe"], {"initial": 7}, "the 7 initial trials are more than the 6 trials"),
        (["random", "tpe"], {"seconds": 0.0}, "--seconds must be greater than 0, got 0"),
        (["random", "tpe"], {"seconds": math.nan}, "--seconds must be greater than 0, got nan"),
    ],
)
def test_what_cannot_be_compared_is_refused(samplers, asked, message):
    with pytest.raises(FixInput, match=message):
        contest(specs(*samplers), **asked)


def test_studies_are_named_after_sampler_and_repeat_and_come_repeat_by_repeat():
    asked = contest(specs("random", "tpe"), repeats=2, name="c")
    assert [s.study_name() for s in asked.studies()] == ["c-random-r1", "c-tpe-r1", "c-random-r2", "c-tpe-r2"]
    assert [s.repeat for s in asked.studies()] == [1, 1, 2, 2]


def test_names_that_others_have_are_refused():
    asked = contest(specs("random", "tpe"), repeats=2, name="c")
    check_free(asked, ["c-random-r1", "c-tpe-r2", "cc-gp-r1", "c-other"])
    with pytest.raises(ChooseAnotherName, match="there is a study 'c'"):
        check_free(asked, ["c"])
    for other in ("c-gp-r1", "c-tpe-r3"):
        with pytest.raises(ChooseAnotherName, match=f"other samplers or more repeats \\({other}\\)"):
            check_free(asked, ["c-random-r1", other])


def test_a_comparison_without_a_name_is_called_after_its_data():
    assert contest(specs("random", "tpe")).name == "digits-compare"
    assert contest(specs("random", "tpe", name="mine")).name == "mine-compare"


def test_what_is_for_a_single_study_is_left_out():
    for study in contest(specs("random", "tpe", references=True, timeout=60)).studies():
        assert not study.references
        assert study.timeout is None


@pytest.mark.parametrize(
    ("samplers", "trials", "own"),
    [(["random", "tpe"], 6, 0), (["random", "tpe"], 15, 5), (["random", "tpe"], 20, None), (["random", "qmc"], 8, 3)],
)
def test_samplers_that_differ_in_too_few_trials_are_told_before_anything_is_trained(samplers, trials, own):
    said = describe_overlap(contest(specs(*samplers, trials=trials), initial=5))
    assert said.startswith(f"samplers differ in {own} of the {trials} trials") if own is not None else said == ""
