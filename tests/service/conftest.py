"""What the tests of the service share."""

import pytest
from serving import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server in a folder of its own, for the tests of one file."""
    made = Server(tmp_path_factory.mktemp("served"))
    yield made
    made.end_all()
