"""Many clients at once: nothing that was accepted is lost, whoever watches hears everything. How long it takes is measured in
benchmarks/serve_load.py."""

import asyncio

import pytest
from serving import Server

from benchmarks.serve_load import load

pytestmark = pytest.mark.process


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path, "--quiet")
    yield made
    made.end_all()


def test_fifty_watchers_and_eighty_submissions(server):
    _, found, heard, lost, _, _ = asyncio.run(load(server.port, seconds=4, watchers=50, rate=20))
    assert lost == 0
    assert found == {201: 80, "again 200": 8}
    assert heard["broken off"] == 0
    assert heard["session"] == 50
    assert {kind for kind in heard if kind.startswith("part")} <= {"part 200"}
    assert server.ask("GET", "/api/health")[1]["queue"]["queued"] >= 80
