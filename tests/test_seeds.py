from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpsearch.seeds import seed_for

GOLDEN = {
    (0, 0, "sampler"): 4082912323,
    (0, 1, "sampler"): 3874430845,
    (1, 0, "sampler"): 921149191,
    (0, 0, "shuffle"): 132306977,
    (2**31 - 1, 49, "grid"): 1197117917,
}


@pytest.mark.parametrize(("key", "seed"), GOLDEN.items())
def test_seeds_never_change_or_old_studies_could_not_be_continued(key, seed):
    assert seed_for(*key) == seed


@settings(deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(0, 10**6), st.text(max_size=20))
def test_a_seed_fits_every_library_that_takes_32_bits(study, trial, purpose):
    assert 0 <= seed_for(study, trial, purpose) < 2**32


def test_seeds_differ_per_study_trial_and_purpose():
    keys = [(study, trial, purpose) for study in range(10) for trial in range(50) for purpose in ("sampler", "shuffle", "weights", "grid")]
    assert len({seed_for(*key) for key in keys}) == len(keys)


def test_digits_do_not_run_together():
    assert seed_for(1, 11, "x") != seed_for(11, 1, "x")


def test_no_global_random_state_is_touched():
    before = random.getstate()
    seed_for(0, 0, "sampler")
    assert random.getstate() == before


@pytest.mark.process
def test_a_seed_is_the_same_in_a_process_with_another_hash_seed():
    code = "from hpsearch.seeds import seed_for; print(seed_for(0, 0, 'sampler'))"
    out = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True
    )
    assert int(out.stdout) == GOLDEN[0, 0, "sampler"]
