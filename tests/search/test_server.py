"""A storage on a real PostgreSQL server: what is said when it cannot be used, and what becomes of writes that it cuts short."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
from optuna.study import StudyDirection

from hpsearch.errors import FixSetup
from hpsearch.search import rows, server
from hpsearch.search.catalog import read_study
from hpsearch.search.lease import leased
from hpsearch.search.searcher import OptunaSearcher
from hpsearch.search.store import Writer, open_storage, opened, same_database
from hpsearch.spec import parse_spec
from hpsearch.types import Notice, Outcome, Status, TrialEnded
from tests.session import MUTANTS
from tests.support.commands import Command
from tests.test_orchestrator import session
from tests.waiting import Memory, until

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def template(postgres):
    """A database with Optuna's tables, to be copied."""
    url = postgres.database()
    open_storage(url, create=True).engine.dispose()
    return url.rpartition("/")[2]


@pytest.fixture
def url(postgres, template):
    return postgres.database(template)


# ---------------------------------------------------------------- opening


def test_an_empty_database_becomes_a_storage_for_writers_only(postgres):
    url = postgres.database()
    with pytest.raises(FixSetup, match="holds no study yet: run one first"):
        open_storage(url)
    assert postgres.sql(r"\dt", database=url.rpartition("/")[2]) == []
    open_storage(url, create=True).engine.dispose()
    with opened(url) as storage:
        assert storage.get_all_studies() == []
    assert optuna.get_all_study_names(url) == []


MAKING = """
import sys
from hpsearch.search.lease import leased
from hpsearch.search.store import open_storage
print("ready", flush=True)
sys.stdin.readline()
with leased(sys.argv[1], sys.argv[2]):
    open_storage(sys.argv[1], create=True).get_all_studies()
"""


def test_four_hosts_make_the_tables_of_one_database_at_once(postgres):
    url = postgres.database()
    how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    hosts = [Command([sys.executable, "-c", MAKING, url, f"s{i}"], **how) for i in range(4)]
    assert [host.stdout.readline() for host in hosts] == ["ready\n"] * 4
    words = [host.communicate("go\n", timeout=120)[1] for host in hosts]
    assert [host.returncode for host in hosts] == [0] * 4, words
    assert postgres.sql("SELECT count(*) FROM version_info", database=url.rpartition("/")[2]) == ["1"]
    assert postgres.sql("SELECT count(*) FROM hpsearch_leases", database=url.rpartition("/")[2]) == ["4"]


def test_what_cannot_be_opened_is_refused_with_a_remedy_within_seconds(postgres, url):
    postgres.sql("CREATE ROLE stranger LOGIN")
    cases = {
        postgres.url("nowhere"): r'database "nowhere" does not exist: make it first',
        postgres.url(url.rpartition("/")[2], user="nobody"): r'role "nobody" does not exist: the user has to be made first',
        postgres.url("postgres", user="stranger"): "permission denied for schema public: the user needs CREATE on the schema",
        postgres.url("postgres", port=9): "refused.*: look whether the server runs there",
        "postgresql+psycopg://u@no-such-host.invalid/d": "look at the host's name",
    }
    for given, message in cases.items():
        begun = time.monotonic()
        with pytest.raises(FixSetup, match=message):
            open_storage(given, create=True)
        assert time.monotonic() - begun < 60, "a test that hangs is no test"


def test_a_database_of_another_program_is_left_alone(postgres):
    for tables, message in ((("experiments", "runs"), "is MLflow's database"), (("alembic_version",), "of another program")):
        url = postgres.database()
        postgres.sql(*(f"CREATE TABLE {table} (id int)" for table in tables), database=url.rpartition("/")[2])
        for create in (True, False):
            with pytest.raises(FixSetup, match=message):
                open_storage(url, create=create)
        assert len(postgres.sql(r"\dt", database=url.rpartition("/")[2])) == len(tables)


def test_the_tables_of_a_program_that_minds_its_own_business_do_not_matter(postgres):
    url = postgres.database()
    postgres.sql("CREATE TABLE customers (id int)", database=url.rpartition("/")[2])
    open_storage(url, create=True).engine.dispose()


def test_another_version_of_optuna_is_refused(postgres, url):
    postgres.sql("UPDATE alembic_version SET version_num = 'v9.9.9.z'", database=url.rpartition("/")[2])
    with pytest.raises(FixSetup, match="no longer compatible"):
        open_storage(url, create=True)


def test_a_session_needs_no_right_to_make_tables_once_they_are_there(postgres, url):
    with leased(url, "s"):
        pass
    database = url.rpartition("/")[2]
    postgres.sql("DROP ROLE IF EXISTS runner", "CREATE ROLE runner LOGIN")
    rights = ("SELECT, INSERT, UPDATE, DELETE ON ALL TABLES", "USAGE ON ALL SEQUENCES")
    postgres.sql(*(f"GRANT {right} IN SCHEMA public TO runner" for right in rights), database=database)
    mine = postgres.url(database, user="runner")
    with leased(mine, "s"):
        assert session(mine, budget=3)[0] == "budget"
    postgres.sql("DROP OWNED BY runner", database=database)


def test_a_reader_needs_no_more_than_to_read(postgres, url):
    storage = open_storage(url, create=True)
    storage.create_new_study([StudyDirection.MINIMIZE], "seen")
    storage.engine.dispose()
    database = url.rpartition("/")[2]
    postgres.sql("DROP ROLE IF EXISTS reader", "CREATE ROLE reader LOGIN")
    postgres.sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader", database=database)
    with opened(postgres.url(database, user="reader")) as storage:
        assert read_study(storage, "seen").records == ()
    postgres.sql("DROP OWNED BY reader", database=database)


NOT_INSTALLED = """
import sys
sys.modules["psycopg"] = None
from hpsearch.cli import main
main(["list", "--storage", "postgresql+psycopg://u:secret@h/d"])
"""


@pytest.mark.process
def test_a_driver_that_is_not_installed_is_named_with_the_command_that_installs_it():
    done = subprocess.run([sys.executable, "-c", NOT_INSTALLED], capture_output=True, text=True)
    assert done.returncode == 1
    assert "the storage needs the package psycopg: pip install 'hpsearch[postgresql]'" in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("postgresql+psycopg://u@h/d", "postgresql://v:w@h/d", True),
        ("postgresql+psycopg://u@h/d", "postgresql://u@h/e", False),
        ("postgresql+psycopg://u@h/d", "http://h/d", False),
        ("sqlite:///d", "sqlite:///d", False),
        ("postgresql+psycopg://u@h/d", "no url", False),
    ],
)
def test_mlflow_and_optuna_never_share_a_database(one, other, same):
    assert same_database(one, other) == same


# ---------------------------------------------------------------- passwords


@pytest.fixture
def guarded(postgres, url):
    """A user with a password that no URL could hold as it is, in a server that asks for it; the URL without it."""
    secret = "p{w}@:/%s x"
    postgres.sql("DROP ROLE IF EXISTS keeper", f"CREATE ROLE keeper LOGIN SUPERUSER PASSWORD '{secret}'")
    rules = postgres.data / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text("host all keeper 127.0.0.1/32 scram-sha-256\n" + before)
    postgres.sql("SELECT pg_reload_conf()")
    yield postgres.url(url.rpartition("/")[2], user="keeper"), secret
    rules.write_text(before)
    postgres.sql("SELECT pg_reload_conf()")


def test_passwords_come_from_the_url_the_environment_or_a_file(guarded, tmp_path, monkeypatch):
    url, secret = guarded
    quoted = "p%7Bw%7D%40%3A%2F%25s%20x"
    open_storage(url.replace("keeper@", f"keeper:{quoted}@"), create=True).engine.dispose()
    open_storage(url.replace("keeper@", f"keeper:{quoted.replace('%7B', '{').replace('%7D', '}')}@"), create=True).engine.dispose()
    with pytest.raises(FixSetup, match=r"password.*PGPASSWORD, or of ~/.pgpass"):
        open_storage(url, create=True)
    with pytest.raises(FixSetup, match=r"password.*PGPASSWORD, or of ~/.pgpass") as caught:
        open_storage(url.replace("keeper@", "keeper:canary@"), create=True)
    assert "canary" not in str(caught.value)
    monkeypatch.setenv("PGPASSWORD", secret)
    open_storage(url, create=True).engine.dispose()
    monkeypatch.delenv("PGPASSWORD")
    (tmp_path / "pass").write_text("127.0.0.1:*:*:keeper:" + secret.replace(":", "\\:") + "\n")
    (tmp_path / "pass").chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pass"))
    open_storage(url, create=True).engine.dispose()


# ---------------------------------------------------------------- a server that restarts, or is away


def test_a_study_goes_on_over_restarts_of_the_server_and_a_person_reads_of_them(postgres, url, monkeypatch):
    monkeypatch.setattr("hpsearch.search.store.AWAY_SECONDS", 0.3)
    memory, cuts = Memory(), []

    def stop():
        """The loop calls it at every turn: the server is away for a second after the second trial, and restarts three times after that."""
        ended = len(memory.of(TrialEnded))
        if len(cuts) < 4 and ended >= 2 + len(cuts):
            cuts.append(ended)
            if len(cuts) == 1:
                postgres.stop()
                threading.Timer(1.5, postgres.start).start()
            else:
                until(lambda: server_is_up(postgres))
                postgres.restart()

    reason, _ = session(url, stop=stop, memory=memory, config={"sleep": 0.05}, budget=12)
    assert (reason, len(cuts)) == ("budget", 4)
    with opened(url) as storage:
        records = read_study(storage, "s").records
    assert [r.number for r in records] == list(range(12))
    assert {r.number: r for r in records} == {e.record.number: e.record for e in memory.of(TrialEnded)}
    notices = [e.text for e in memory.of(Notice)]
    assert notices[0].startswith(f"{url} does not answer: training goes on")
    assert "The storage answers again, and catches up" in notices


def server_is_up(postgres):
    return postgres.call("pg_isready", "-h", "127.0.0.1", "-p", postgres.port, check=False).returncode == 0


class Cut:
    """Stands between a client and the server, and cuts the line right after a COMMIT was carried out, before the client hears of it."""

    def __init__(self, port):
        self.port, self.armed, self.cut = port, False, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            backend = socket.create_connection(("127.0.0.1", self.port))
            forth = threading.Thread(target=self.forward, args=(client, backend), daemon=True)
            forth.start()
            threading.Thread(target=self.back, args=(backend, client, forth), daemon=True).start()

    def forward(self, client, backend):
        while data := self.read(client):
            last = self.armed and b"COMMIT" in data
            if last:
                self.armed = False
                self.swallowing = backend
            with contextlib.suppress(OSError):
                backend.sendall(data)

    def back(self, backend, client, forth):
        while data := self.read(backend):
            if getattr(self, "swallowing", None) is backend and b"COMMIT" in data:
                self.cut += 1
                break
            with contextlib.suppress(OSError):
                client.sendall(data)
        for end in (client, backend):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        forth.join()
        client.close()
        backend.close()

    def read(self, end):
        try:
            return end.recv(1 << 16)
        except OSError:
            return b""


def entered(postgres, url):
    """How a trial whose commit was carried out and not confirmed is entered; how many rows there are, and the writer's error."""
    cut = Cut(postgres.port)
    storage = open_storage(url.replace(f":{postgres.port}/", f":{cut.listener.getsockname()[1]}/"), create=True)
    searcher = OptunaSearcher(parse_spec({"name": "s", "sampler": "random", "pruner": "none", "trials": 3}), storage)
    cut.armed = True
    (trial,) = searcher.ask(1)
    until(lambda: cut.cut)
    searcher.tell(Outcome(trial.number, Status.COMPLETE, 0.5, 1, 0.1, {}, dict(trial.params)))
    try:
        searcher.close()
        problem = ""
    except FixSetup as error:
        problem = str(error)
    with opened(url) as looked:
        records = read_study(looked, "s").records
    return records, problem


def test_a_trial_whose_commit_was_not_confirmed_is_there_once(postgres, url):
    (record,), problem = entered(postgres, url)
    assert (record.status, record.val_loss, problem) == (Status.COMPLETE, 0.5, "")


def test_without_the_look_for_it_that_is_noticed(postgres, url, monkeypatch):
    monkeypatch.setattr(rows, "find", rows.find)
    MUTANTS["lookup"]()
    _, problem = entered(postgres, url)
    assert "holds 1 trials of this study where 0 were expected" in problem


def test_a_study_whose_making_was_not_confirmed_is_there_once(postgres, url):
    cut = Cut(postgres.port)
    storage = open_storage(url.replace(f":{postgres.port}/", f":{cut.listener.getsockname()[1]}/"), create=True)
    cut.armed = True
    assert storage.create_new_study([StudyDirection.MINIMIZE], "s") == storage.get_study_id_from_name("s")
    assert cut.cut == 1
    storage.engine.dispose()


def test_a_server_that_stays_away_is_given_up_with_a_reason(postgres, url, monkeypatch):
    monkeypatch.setattr("hpsearch.search.store.RETRY_SECONDS", 1.0)
    storage = open_storage(url, create=True)
    study = storage.create_new_study([StudyDirection.MINIMIZE], "s")
    monkeypatch.setattr(server, "PATIENCE", 0.5)
    postgres.stop()
    try:
        writer = Writer(storage)
        writer.put(lambda: storage.set_study_user_attr(study, "a", 1))
        with pytest.raises(FixSetup, match=r"the storage cannot be written: .*What was stored before is kept"):
            writer.close()
    finally:
        postgres.start()
    storage.engine.dispose()


def test_optunas_dashboard_opens_it(postgres, url):
    import optuna_dashboard

    session(url, budget=3)
    answers, environ = [], {"PATH_INFO": "/api/studies"}
    setup_testing_defaults(environ)
    body = b"".join(optuna_dashboard.wsgi(url)(environ, lambda status, headers, error=None: answers.append(status)))
    assert answers == ["200 OK"]
    assert [study["study_name"] for study in json.loads(body)["study_summaries"]] == ["s"]
