"""A queue that another program, or a disk, has damaged: what cannot be used is set aside with its reason, and the rest is run."""

import json
from contextlib import closing

import pytest
from serving import SHORT, Server

from hpsearch.search.queue import COMPARE, Queue

pytestmark = pytest.mark.process

BAD = {  # study -> what is written into its row, what is said of it
    "no-json": ({"values": '{"trials": 5'}, "its study is no JSON"),
    "text-priority": ({"priority": "high"}, "its priority is 'high'"),
    "text-wait": ({"not_before": "tomorrow"}, "its not_before is 'tomorrow'"),
    "no-study": ({"values": json.dumps({"trials": 4, "space": 5})}, "space"),
    "no-kind": ({"values": json.dumps({**SHORT, COMPARE: {"races": 3}})}, "is not what a comparison asks for"),
    "half-a-character": ({"values": json.dumps({**SHORT, "data": "\ud800"})}, "data: its text holds half a character"),
}


@pytest.fixture
def server(tmp_path):
    with closing(Queue(f"sqlite:///{tmp_path}/hpsearch.db", tmp_path)) as queue:
        for study, (values, _) in BAD.items():
            number = queue.add(study, SHORT, 4)[0].id
            with queue.engine.begin() as db:
                for key, value in values.items():
                    db.exec_driver_sql(f'UPDATE hpsearch_queue SET "{key}" = ? WHERE id = ?', (value, number))
        queue.add("good", SHORT, 4)
    made = Server(tmp_path)
    yield made
    made.end_all()


def test_every_bad_row_is_shown_with_its_reason_and_the_good_one_is_run(server):
    server.until("good", "done")
    for study, (_, reason) in BAD.items():
        row = server.study(study)
        assert (row["state"], reason in row["note"]) == ("failed", True), row["note"]
        status, page = server.ask("GET", f"/studies/{study}")
        assert (status, "cannot be used" in page) == (200, True)
    assert server.ask("GET", "/")[0] == 200
    assert server.ask("GET", "/api/health")[1]["status"] == "ok"
    log = (server.folder / "serve.log").read_text()
    assert "its priority is 'high', not a whole number" in log
    assert "Traceback" not in log
