"""Schemathesis against the OpenAPI document of a real server: whatever is sent, no answer is a fault of the server's."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import one_of
from serving import SHORT, Server

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("fuzzed"), "--quiet")
    made.submit("one", {**SHORT, "trials": 1})
    made.until("one", "done")
    made.submit("two", SHORT)
    made.ask("POST", "/api/studies/two/pause")
    yield made
    made.end_all()


@pytest.fixture(scope="module")
def schema(server):
    import schemathesis  # takes three seconds, in every test process that collects this file

    document = json.loads(server.raw("GET", "/api/openapi.json")[2])
    assert document["openapi"].startswith("3.1")
    for path in list(document["paths"]):  # these run commands of many seconds; tests/service/test_api.py has them
        if path.endswith(("/report", "/export", "/compare", "/events")):
            del document["paths"][path]
    made = schemathesis.openapi.from_dict(document)
    made.config.update(base_url=server.address)
    return made


FEW = settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def test_no_request_is_the_servers_fault(schema):
    from schemathesis import GenerationMode

    seen = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        strategies = [operation.as_strategy(generation_mode=mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)]

        @FEW
        @given(case=one_of(strategies))
        def ask(case):
            if case.path_parameters and len(str(case.path_parameters.get("name", ""))) % 2:
                case.path_parameters["name"] = "one"  # so that more than refusals are seen
            answer = case.call()
            seen.setdefault((case.method, case.path), set()).add(answer.status_code)
            assert answer.status_code < 500 or answer.status_code == 503, answer.text
            if answer.status_code >= 400:
                assert "application/problem+json" in str(answer.headers["content-type"])

        ask()
    assert len(seen) >= 13
    assert any(status < 300 for statuses in seen.values() for status in statuses)
    assert sum(422 in statuses for statuses in seen.values()) >= 5


def test_the_document_names_every_verb(server):
    document = json.loads(server.raw("GET", "/api/openapi.json")[2])
    paths = {(method, path) for path, methods in document["paths"].items() for method in methods}
    for verb in ("cancel", "pause", "resume"):
        assert ("post", f"/api/studies/{{name}}/{verb}") in paths
    assert "Problem" in document["components"]["schemas"]
    assert all("422" in methods[m]["responses"] for methods in document["paths"].values() for m in methods)
