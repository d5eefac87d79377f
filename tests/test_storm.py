"""A storm of thirty kills, of orchestrator, workers and MLflow's process, as `make chaos` has it in large."""

import pytest

from tests.storm import prepare, storm

pytestmark = pytest.mark.process


def test_thirty_kills_lose_nothing(tmp_path):
    prepare(tmp_path)
    toll = storm(tmp_path, seed=3, kills=30, points=40, sleep=0.1, gap=0.5)
    assert toll.clean, toll.line()
    assert sum(toll.kills.values()) >= 15, "the study was over before the storm"
