"""What people type elsewhere leads to what it is called here."""

import pytest
from click.testing import CliRunner

from hpsearch import other_names
from hpsearch.cli import main
from hpsearch.errors import FixInput
from hpsearch.recipes import KNOWN
from hpsearch.spec import PreprocessSpec, StudySpec, load_spec, parse_spec


def test_every_key_that_is_named_is_there():
    for word, key in other_names.KEYS.items():
        section, _, name = key.partition(".")
        assert word == other_names.plain(word)
        assert section in StudySpec.model_fields
        assert not name or name in (PreprocessSpec.model_fields if section == "preprocess" else KNOWN)


def test_no_word_leads_away_from_a_key_of_that_name():
    for name in StudySpec.model_fields:
        assert other_names.key_for(name) in (None, name) or name in ("confirm",)


@pytest.mark.parametrize("option", ["--lr", "--batch-size", "--epochs", "--wd", "--imgsz", "--num-epochs", "--gpus", "--jobs", "--metric"])
@pytest.mark.parametrize("command", ["run", "compare"])
def test_options_of_other_tools_are_explained_with_one_that_works(command, option):
    said = CliRunner().invoke(main, [command, option, "1"]).output
    assert f"no option {option}: use --" in said
    words = said.split("use ")[1].split()
    if words[0] == "--set":
        value = "64" if "size" in words[1] else "0.5" if "rate" in words[1] or "decay" in words[1] else "3"
        load_spec(None, [words[1].replace("VALUE", value)])
    else:
        assert any(words[0] in option.opts for option in main.commands["run"].params)


@pytest.mark.parametrize("word", sorted(other_names.COMMANDS))
def test_commands_of_other_tools_are_explained(word):
    if word in main.commands:
        return
    said = CliRunner().invoke(main, [word, "x"]).output
    assert f"no command '{word}': " in said
    for part in said.split("`hpsearch ")[1:]:
        assert part.split("`")[0].split()[0] in main.commands


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"lr": 0.1}, "here it is 'learning_rate' under space, or under recipe where it is fixed"),
        ({"space": {"lr": 0.1}}, "here it is called 'learning_rate'"),
        ({"recipe": {"wd": 0.1}}, "here it is called 'weight_decay'"),
        ({"imgsz": 64}, "here it is 'size' under preprocess"),
        ({"preprocess": {"image_size": 64}}, "here it is called 'size'"),
        ({"epochs": 3}, "here it is 'epochs' under space"),
        ({"n_trials": 3}, "did you mean 'trials'?"),
        ({"num_samples": 3}, "here it is called 'trials'"),
        ({"pruner": {"warm_up": 3}}, "did you mean 'warmup'?"),
        ({"sampler": "unheard-of"}, "known: grid, random, tpe, gp, qmc, cmaes"),
        ({"pruner": "zzz"}, "known: none, median, halving, hyperband, patient"),
    ],
)
def test_keys_of_other_tools_are_explained(values, hint):
    with pytest.raises(FixInput) as caught:
        parse_spec(values)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("30m", 1800), ("90", 90), ("1h30m", 5400), ("1.5 h", 5400), ("45 sec", 45), ("1d", 86400), (12, 12), ("10 min", 600)],
)
def test_times_are_read_as_people_write_them(text, seconds):
    assert parse_spec({"timeout": text}).timeout == seconds
    assert parse_spec({"stall": text}).stall == seconds


@pytest.mark.parametrize("text", ["2x", "h", "", "soon", "-1h", "0m", "1e", True])
def test_what_is_no_time_is_refused_with_one_that_is(text):
    with pytest.raises(FixInput, match="timeout"):
        parse_spec({"timeout": text})
