"""Who may ask for what: strangers' pages, strangers' machines, files elsewhere, too much at once (faults 33 and 34)."""

import http.client
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import SHORT, Server

from hpsearch.errors import FixInput
from hpsearch.service.guard import host_name, make_guard
from hpsearch.spec import parse_spec
from tests.support.commands import HPSEARCH, run_command

TOKEN = "a-token-of-many-characters"


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A server with a token; the environment of what it starts is looked at, so that is not forked."""
    made = Server(tmp_path_factory.mktemp("locked"), environment={"HPSEARCH_TOKEN": TOKEN}, twins=0)
    yield made
    made.end_all()


# ---------------------------------------------------------------- other pages


@pytest.mark.process
@pytest.mark.parametrize("host", ["evil.com", "evil.com:8470", "localhost.evil.com", "127.0.0.1.evil.com", "", "[::2]"])
@pytest.mark.parametrize("path", ["/", "/api/studies", "/api/health"])
def test_a_name_that_is_not_the_servers_is_refused(server, host, path):
    assert server.raw("GET", path, headers={"host": host})[0] == 421


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8470", "LOCALHOST"])
def test_its_own_names_are_not(server, host):
    assert server.raw("GET", "/api/health", headers={"host": host})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.com"},
        {"origin": "null"},
        {"origin": "http://localhost:1"},
        {"origin": "file://"},
        {"origin": "http://[evil"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_page_of_another_site_cannot_ask_for_anything(server, headers):
    for path in ("/api/studies", "/studies", "/studies/x/cancel", "/login", "/parts/preview"):
        status, _, text = server.raw("POST", path, b"{}", headers)
        assert (status, b"another site" in text) == (403, True), path
    assert server.raw("PATCH", "/api/studies/x", b"{}", headers)[0] == 403


def test_no_route_is_open_to_strangers(server, tmp_path):
    """Every route with every method, as the application has them: a new one is tried by itself."""
    from hpsearch.places import place
    from hpsearch.service.serve import application

    app = application(place(tmp_path, track=False), make_guard("127.0.0.1", "", (), (), False, tmp_path))
    tried = 0
    for path, methods in routes(app.routes):
        path = path.replace("{name}", "one").replace("{number}", "1").replace("{verb}", "cancel")
        for method in methods:
            for host in ("evil.com", "evil.com:80", "127.0.0.1.nip.io"):
                assert server.raw(method, path, headers={"host": host})[0] == 421, (method, path)
            foreign = [{"origin": "http://evil.com"}, {"origin": "null"}] if method not in ("GET", "HEAD") else []
            foreign += [{"sec-fetch-site": "cross-site"}] if method != "GET" or path.startswith(("/api/", "/parts/")) else []
            for headers in foreign:
                assert server.raw(method, path, b"{}", headers)[0] == 403, (method, path)
            tried += 1
    assert tried > 35


def routes(found):
    """Path and methods of every route, of routers in routers too."""
    for route in found:
        if hasattr(route, "methods") and hasattr(route, "path"):
            yield route.path, sorted((route.methods or set()) - {"HEAD"})
        else:
            inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", ())
            yield from routes(inner)


def test_its_own_page_can(server):
    own = {"origin": f"http://127.0.0.1:{server.port}", "sec-fetch-site": "same-origin"}
    assert server.raw("POST", "/api/studies/nope/cancel", None, own)[0] == 404


def test_answers_say_what_a_browser_may_do_with_them(server):
    _, headers, _ = server.raw("GET", "/")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers
    assert "server" not in headers


# ---------------------------------------------------------------- other machines


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org"])
def test_others_are_let_in_with_a_token_only(host, tmp_path):
    with pytest.raises(FixInput, match="HPSEARCH_TOKEN"):
        make_guard(host, "", (), (), False, tmp_path)
    with pytest.raises(FixInput, match="too short"):
        make_guard(host, "short", (), (), False, tmp_path)
    make_guard(host, TOKEN, (), (), False, tmp_path)


@pytest.mark.process
def test_the_command_refuses_to_listen_without_one(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "HPSEARCH_TOKEN"}
    command = [HPSEARCH, "serve", "--host", "0.0.0.0", "--port", "0"]
    done = run_command(command, cwd=tmp_path, env=environment, timeout=60)
    assert (done.returncode, "HPSEARCH_TOKEN" in done.stderr) == (2, True)


@pytest.mark.process
def test_without_the_token_nothing_is_answered_but_health(locked):
    for path in ("/api/studies", "/api/openapi.json", "/api/metrics", "/static/app.js", "/parts/studies"):
        status, headers, _ = locked.raw("GET", path)
        assert (status, headers["www-authenticate"]) == (401, "Bearer"), path
        assert locked.raw("GET", path, headers={"authorization": "Bearer wrong"})[0] == 401
        assert locked.raw("GET", path, headers={"authorization": f"Bearer {TOKEN}"})[0] == 200
    assert locked.raw("GET", "/api/health")[0] == 200
    status, headers, _ = locked.raw("GET", "/", headers={"accept": "text/html"})
    assert (status, headers["location"]) == (303, "/login")


def test_a_browser_signs_in_and_keeps_no_token(locked):
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert locked.raw("POST", "/login", b"token=wrong", form)[0] == 401
    status, headers, _ = locked.raw("POST", "/login", f"token={TOKEN}".encode(), form)
    cookie = headers["set-cookie"]
    assert status == 303
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    value = cookie.partition(";")[0]
    assert locked.raw("GET", "/", headers={"cookie": value})[0] == 200
    assert locked.raw("GET", "/", headers={"cookie": value + "0"})[0] == 401


@pytest.mark.process
def test_secrets_are_in_no_log_and_in_no_study(locked):
    bearer = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
    locked.raw("GET", f"/api/studies?token={TOKEN}", headers=bearer)
    locked.raw("POST", "/login", f"token={TOKEN}".encode())
    assert locked.ask("POST", "/api/studies", {"study": {**SHORT, "name": "secret"}}, bearer)[0] == 201
    for _ in range(600):
        if (children := locked.children()) and (environ := Path(f"/proc/{children[0]}/environ").read_bytes()):
            break
    assert TOKEN.encode() not in environ
    assert TOKEN not in (locked.folder / "serve.log").read_text()
    assert TOKEN.encode() not in Path(f"/proc/{locked.process.pid}/cmdline").read_bytes()
    locked.ask("POST", "/api/studies/secret/cancel", None, bearer)


@pytest.mark.process
def test_a_token_out_of_a_file(tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    made = Server(tmp_path, "--token-file", "token")
    try:
        assert made.raw("GET", "/api/studies")[0] == 401
        assert made.raw("GET", "/api/studies", headers={"authorization": f"bearer {TOKEN}"})[0] == 200
    finally:
        made.end_all()


# ---------------------------------------------------------------- files elsewhere


@pytest.mark.parametrize(
    "values",
    [
        {"data": "/etc", "model": "resnet18"},
        {"data": "../outside", "model": "resnet18"},
        {"data": "link", "model": "resnet18"},
        {"data": "inside/../../outside", "model": "resnet18"},
        {"data": "~root", "model": "resnet18"},
        {"data": "CIFAR10", "data_root": "/var", "model": "resnet18"},
        {"model": "resnet18", "weights": "../outside/w.safetensors"},
        {"model": "resnet18", "weights": "link/w.pt"},
    ],
)
def test_data_elsewhere_is_refused(tmp_path, values):
    (tmp_path / "work" / "inside").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "work" / "link").symlink_to(tmp_path / "outside")
    guard = make_guard("127.0.0.1", "", (), (), False, tmp_path / "work")
    with pytest.raises(FixInput, match=r"not in a folder that this server reads|cannot be used"):
        guard.admit(parse_spec(values), tmp_path / "work")
    if "link" in str(values):
        wide = make_guard("127.0.0.1", "", (), (tmp_path,), False, tmp_path / "work")
        wide.admit(parse_spec(values), tmp_path / "work")


@pytest.mark.parametrize("values", [{"data": "os:system", "model": "resnet18"}, {"model": "my_models:net"}])
def test_code_is_not_run_for_others_unless_it_is_allowed(tmp_path, values):
    with pytest.raises(FixInput, match="--allow-code"):
        make_guard("127.0.0.1", "", (), (), False, tmp_path).admit(parse_spec(values), tmp_path)
    make_guard("127.0.0.1", "", (), (), True, tmp_path).admit(parse_spec(values), tmp_path)


def test_what_needs_no_file_is_admitted(tmp_path):
    guard = make_guard("127.0.0.1", "", (), (), False, tmp_path)
    (tmp_path / "photos").mkdir()
    for values in ({}, {"data": "CIFAR10", "model": "resnet18"}, {"data": "photos", "model": "resnet18"}):
        guard.admit(parse_spec(values), tmp_path)


@pytest.mark.parametrize(
    "path",
    [
        "/static/../base.html.j2",
        "/static/%2e%2e%2fstudy.yaml",
        "/static/base.html.j2",
        "/api/studies/..%2f..%2fetc/log",
        "/api/studies/%2e%2e/log",
        "/api/studies/..%5c..%5cetc/report",
        "/studies/%00/trials/1",
        "/parts/study/..%2f..%2fetc",
        "/api/studies/" + "a" * 300,
        "/studies/%F0%9F%98%80",
    ],
)
def test_no_path_leads_to_a_file(server, path):
    status, _, text = server.raw("GET", path)
    assert status in (404, 422), text
    assert b"root:" not in text


# ---------------------------------------------------------------- too much


def test_too_large_a_body_is_refused_however_it_comes(server):
    large = b'{"yaml": "' + b"a" * (1 << 20) + b'"}'
    assert server.raw("POST", "/api/studies", large)[0] == 413
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    pieces = iter([large[: 1 << 19], large[1 << 19 :]])
    connection.request("POST", "/api/studies", pieces, {"content-type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()
    assert server.raw("GET", "/api/health")[0] == 200


def test_hostile_studies_end_with_an_answer(server):
    bombs = [
        "a: &a [x]\nb: &b [*a,*a]\nc: [*b,*b]",
        "x" * 199_000,
        "[" * 5000,
        "space: {learning_rate: {low: .nan, high: 1}}",
        "\x00",
        "{a: !!python/object:os.system x}",
    ]
    for bomb in bombs:
        assert server.ask("POST", "/api/studies", {"yaml": bomb})[0] == 422
    deep = b'{"study":' + b'{"a":' * 3000 + b"1" + b"}" * 3000 + b"}"
    assert server.raw("POST", "/api/studies", deep)[0] in (400, 422)
    assert server.ask("POST", "/api/studies", {"study": {}}, {"idempotency-key": "a" * 300})[0] == 422


@pytest.mark.process
@pytest.mark.parametrize(("host", "name"), [("a:1", "a"), ("[::1]:2", "::1"), ("A", "a"), ("::1", "::1"), ("", "")])
def test_names_out_of_hosts(host, name):
    assert host_name(host) == name


@pytest.mark.process
def test_a_served_study_follows_no_link_out_of_its_data(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "work" / "photos" / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "work" / "photos" / name / f"{i}.png")
    (tmp_path / "outside").mkdir()
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "outside" / "1.png")
    (tmp_path / "work" / "photos" / "owl").symlink_to(tmp_path / "outside")
    made = Server(tmp_path / "work")
    try:
        values = {
            "data": "photos",
            "model": "glyphnet",
            "preprocess": {"size": 16, "resize": 16},
            "trials": 1,
            "space": {"epochs": 1, "frozen_layers": 0},
        }
        made.submit("linked", values)
        assert made.until("linked", "done", "failed")["state"] == "done"
        said = " ".join(made.ask("GET", "/api/studies/linked/log")[1].split())
        assert "1 path leads out of the folders that this server reads data from," in said
        with np.load(tmp_path / "work" / "hpsearch-runs" / "linked" / "split.npz") as index:
            assert [*index["classes"]] == ["cat", "dog"]
    finally:
        made.end_all()
