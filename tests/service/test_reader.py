"""What is read for many at once is never older than the change that they were told of."""

import pytest

from hpsearch.places import place
from hpsearch.search.glance import Glance
from hpsearch.search.queue import COMPARE, Queue
from hpsearch.search.store import open_storage
from hpsearch.service.reader import Reader
from hpsearch.service.stream import brief


@pytest.fixture
def reader(tmp_path):
    where = place(tmp_path, track=False)
    open_storage(where.storage, create=True).engine.dispose()
    queue = Queue(where.storage)
    yield Reader(queue, where)
    queue.close()


def test_a_state_that_has_changed_makes_what_was_read_before_old(reader):
    reader.notice("s", "running")
    for key in ("html study s", "html studies", "html study other"):
        reader.once(key, lambda: "old")
    reader.notice("s", "running")
    assert reader.peek("html study s") == "old", "nothing has changed"
    reader.notice("s", "paused")
    assert reader.peek("html study s") is None
    assert reader.peek("html studies") is None
    assert reader.peek("html study other") == "old"


def test_what_is_being_read_while_something_changes_is_not_kept(reader):
    def read():
        reader.forget("s")
        return "before the change"

    assert reader.once("html study s", read) == "before the change"
    assert reader.peek("html study s") is None
    assert reader.once("html study t", read) == "before the change"
    assert reader.peek("html study t") == "before the change", "it was another study's"
    assert reader.once("html studies", read) == "before the change"
    assert reader.peek("html studies") is None
    assert reader.once("html study s", lambda: "after it") == "after it"
    assert reader.peek("html study s") == "after it"


def test_the_stream_notices_what_the_queue_says(reader):
    reader.queue.add("s", {"trials": 1}, 1)
    assert brief(reader, "s")["state"] == "queued"
    reader.once("html study s", lambda: "old")
    reader.queue.want("s", "cancelled")
    assert brief(reader, "s")["state"] == "cancelled"
    assert reader.peek("html study s") is None


@pytest.mark.parametrize(("objective", "best"), [("F1", 0.9), ("val_loss", 0.5)])
def test_the_best_of_a_comparison_is_that_of_its_objective(reader, objective, best):
    reader.queue.add("c", {"objective": objective, COMPARE: {"samplers": ["random", "tpe"], "repeats": 1, "initial": 1}}, 2)
    known = {
        name: Glance(name, {"complete": 1}, score, None) for name, score in (("c-random-r1", 0.5), ("c-tpe-r1", 0.9), ("d-tpe-r1", 7.0))
    }
    row = reader.row("c", reader.entry("c"), None, known)
    assert (row["best_score"], row["ended"], row["studies"]) == (best, 2, ["c-random-r1", "c-tpe-r1"])
