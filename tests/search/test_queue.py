"""The queue of studies: what may follow what, who comes next, and that claims are made once."""

import shutil
import threading
import time

import pytest
from sqlalchemy import update

from hpsearch.errors import ChooseAnotherName, FixInput, NotFound, WaitOrStop
from hpsearch.search import queue as queues
from hpsearch.search.catalog import study_names
from hpsearch.search.queue import LOSSES, QUEUE, Queue
from hpsearch.search.store import open_storage, opened

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("queue")
    Queue(f"sqlite:///{folder}/hpsearch.db").close()
    return folder / "hpsearch.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path, empty):
    if request.param == "sqlite":
        shutil.copy(empty, tmp_path / "hpsearch.db")
        return f"sqlite:///{tmp_path}/hpsearch.db"
    return request.getfixturevalue("postgres").database()


@pytest.fixture
def queue(url):
    made = Queue(url)
    yield made
    made.close()


def add(queue, study, **more):
    return queue.add(study, {"trials": 5}, 5, **more)[0]


def run(queue, study, **more):
    entry = add(queue, study, **more)
    assert queue.claim(entry.id, 7, 1.0, 0)
    return queue.latest(study)


def test_the_table_beside_optunas_harms_neither(url, queue):
    add(queue, "a")
    with opened(url) as storage:
        assert study_names(storage) == []
    open_storage(url, create=True).engine.dispose()
    again = Queue(url)
    assert again.latest("a").values == {"trials": 5}
    again.close()
    with pytest.raises(NotFound):
        queue.latest("b")


def test_a_key_makes_one_study_and_no_other(queue):
    first, new = queue.add("a", {}, 5, key="k", digest="d")
    assert new
    assert queue.add("a", {}, 5, key="k", digest="d") == (first, False)
    with pytest.raises(FixInput, match="used for another submission"):
        queue.add("b", {}, 5, key="k", digest="e")
    queue.want("a", "cancelled")
    assert queue.add("a", {}, 5, key="k", digest="d")[1] is False, "a key is for ever"


def test_one_study_of_a_name_is_active(queue):
    entry = add(queue, "a")
    for state in ("queued", "paused"):
        if state == "paused":
            queue.want("a", "paused")
        with pytest.raises(ChooseAnotherName):
            add(queue, "a")
    queue.want("a", "cancelled")
    assert add(queue, "a").id > entry.id
    assert queue.latest("a").state == "queued"


def test_twenty_threads_that_submit_the_same_make_one(queue):
    found = []
    threads = [threading.Thread(target=lambda: found.append(queue.add("a", {}, 5, key="k", digest="d"))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({entry.id for entry, _ in found}) == 1
    assert sum(new for _, new in found) == 1


def test_a_row_is_claimed_once_whoever_asks(url):
    queues_ = [Queue(url) for _ in range(4)]
    entry, won = add(queues_[0], "a"), []

    def claim(number):
        if queues_[number].claim(entry.id, number, 1.0, 0):
            won.append(number)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert queues_[0].latest("a").pid == won[0]
    for queue in queues_:
        queue.close()


def test_what_is_wanted_of_a_running_study_is_what_it_becomes(queue):
    for wanted in ("paused", "cancelled"):
        entry = run(queue, wanted)
        assert queue.want(wanted, wanted).state == "running"
        assert queue.conclude(entry.id, 7, "interrupted") == wanted
    entry = run(queue, "c")
    assert queue.conclude(entry.id, 7, "interrupted") == "queued", "the server was stopped: it goes on with the next one"
    with pytest.raises(WaitOrStop, match="has ended"):
        queue.want("cancelled", "paused")
    entry = run(queue, "d")
    queue.want("d", "paused")
    queue.resume("d")
    assert queue.conclude(entry.id, 7, "interrupted") == "queued"


def test_only_who_has_claimed_a_row_ends_it(queue):
    entry = run(queue, "a")
    assert queue.conclude(entry.id, 8, "done") == "running"
    assert queue.conclude(entry.id, 7, "done", trials=5) == "done"
    assert queue.conclude(entry.id, 7, "failed") == "done"


def test_more_trials_that_came_too_late_for_a_session_begin_another(queue):
    entry = run(queue, "a")
    queue.revise("a", 9, None)
    assert queue.conclude(entry.id, 7, "done", trials=5) == "queued"
    assert queue.latest("a").trials == 9
    with pytest.raises(FixInput, match="can only be raised"):
        queue.revise("a", 8, None)
    assert queue.claim(entry.id, 7, 1.0, 0)
    assert queue.conclude(entry.id, 7, "done", trials=9) == "done"
    assert queue.revise("a", 12, None).state == "queued", "a study that is done goes on"


def test_a_lost_process_gives_its_row_back_a_few_times(queue):
    entry = run(queue, "a")
    for loss in range(LOSSES):
        entry = queue.latest("a")
        state = queue.lost(entry, "gone")
        assert state == ("failed" if loss == LOSSES - 1 else "queued")
        assert queue.lost(entry, "gone twice") == state
        assert queue.latest("a").losses == loss + 1, "once a loss"
        queue.claim(entry.id, 7, 1.0, 0)
    assert queue.latest("a").note == "gone"
    assert queue.resume("a").losses == 0
    entry = run(queue, "b")
    queue.want("b", "cancelled")
    assert queue.lost(queue.latest("b"), "gone") == "cancelled"


def used(queue, number, seconds):
    """As if that study had run so long."""
    with queue.engine.begin() as db:
        db.execute(update(QUEUE).where(QUEUE.c.id == number).values(seconds=seconds))


def test_priorities_then_fair_shares_then_age(queue):
    first = run(queue, "a1", share="ada")
    second = add(queue, "a2", share="ada")
    other = add(queue, "b1", share="bob")
    assert queue.next() == other.id, "ada has one running"
    queue.conclude(first.id, 7, "done", trials=5)
    used(queue, first.id, 100)
    assert queue.next() == other.id, "ada has had her turn"
    assert queue.next([other.id]) == second.id
    urgent = add(queue, "a3", share="ada", priority=1)
    assert queue.next() == urgent.id
    queue.revise("a2", None, 2)
    assert queue.next() == second.id
    queue.want("a2", "paused")
    assert queue.next() == urgent.id


def test_equal_shares_take_turns(queue):
    for number in range(3):
        add(queue, f"a{number}", share="ada")
    for number in range(3):
        add(queue, f"b{number}", share="bob")
    order = []
    for turn in range(6):
        number = queue.next()
        entry = queue.entry(number)
        order.append(entry.share)
        assert queue.claim(number, 7, 1.0, 0)
        queue.conclude(number, 7, "done", trials=5)
        used(queue, number, 10 + turn)
    assert order == ["ada", "bob"] * 3


def test_a_server_runs_what_was_submitted_in_its_folder(url, tmp_path):
    here, there = Queue(url, tmp_path), Queue(url, tmp_path / "other")
    (tmp_path / "other").mkdir()
    entry = add(here, "a")
    assert (here.next(), there.next()) == (entry.id, None)
    assert here.claim(entry.id, 7, 1.0, 0)
    assert ([e.id for e in here.running()], there.running()) == ([entry.id], [])
    assert there.latest("a") == here.latest("a"), "and shows all"
    assert there.want("a", "paused").wanted == "paused"
    for queue in (here, there):
        queue.close()


def test_what_belongs_to_a_renamed_folder_is_taken_over(tmp_path, empty):
    (tmp_path / "old").mkdir()
    shutil.copy(empty, tmp_path / "old" / "hpsearch.db")
    queue = Queue(f"sqlite:///{tmp_path}/old/hpsearch.db", tmp_path / "old")
    entry = add(queue, "a")
    queue.close()
    (tmp_path / "old").rename(tmp_path / "new")
    queue = Queue(f"sqlite:///{tmp_path}/new/hpsearch.db", tmp_path / "new")
    assert queue.next() is None
    queue.adopt()
    assert queue.next() == entry.id
    queue.close()


def test_the_states_are_those_that_the_columns_know():
    assert set(queues.ACTIVE) < set(queues.STATES)


DAMAGE = {
    "no JSON": ({"values": '{"trials": 5'}, "its study is no JSON"),
    "a list": ({"values": "[1]"}, "its study is no mapping but a list"),
    "nested without end": ({"values": "[" * 100_000}, "its study is no JSON (RecursionError"),
    "a comparison that is a list": ({"values": '{"compare": [1]}'}, "is not what a comparison asks for"),
    "a name that leads out": ({"study": "../a"}, "no study can be called '../a'"),
}
TEXT = {  # a server's columns have types
    "priority": ("high", "its priority is 'high', not a whole number"),
    "trials": ("many", "its trials is 'many', not a whole number"),
    "not_before": ("tomorrow", "its not_before is 'tomorrow', not a number"),
    "submitted": ("today", "its submitted is 'today', not a number"),
}


def spoil(queue, number, **values):
    """Writes into a row as another program could: SQLite keeps text in a column of numbers."""
    with queue.engine.begin() as db:
        for key, value in values.items():
            db.exec_driver_sql(f"UPDATE hpsearch_queue SET \"{key}\" = '{value}' WHERE id = {number}")


def check_set_aside(queue, number, words):
    assert queue.next() == number
    entry = queue.entry(number)
    assert words in entry.damage
    queue.set_aside(entry)
    following = add(queue, "b").id
    assert queue.next() == following
    shown = next(entry for entry in queue.all_latest() if entry.id == number)
    assert (shown.state, words in shown.note) == ("failed", True)


@pytest.mark.parametrize(("values", "words"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_row_is_set_aside_with_its_reason_and_the_next_one_is_run(queue, values, words):
    number = add(queue, "a").id
    spoil(queue, number, **values)
    check_set_aside(queue, number, words)


@pytest.mark.parametrize(("key", "value", "words"), [(key, *rest) for key, rest in TEXT.items()])
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_number_that_is_text_sets_its_row_aside(queue, key, value, words):
    number = add(queue, "a").id
    spoil(queue, number, **{key: value})
    check_set_aside(queue, number, words)


def test_a_row_of_an_unknown_state_is_shown_as_failed_and_hinders_nobody(queue):
    spoil(queue, add(queue, "a").id, state="hibernating")
    assert "its state 'hibernating' is not one of queued" in queue.latest("a").note
    following = add(queue, "b").id
    assert queue.next() == following


def test_a_clock_that_was_set_back_makes_nobody_wait_longer_than_was_asked_for(queue):
    waits, due = add(queue, "waits").id, add(queue, "written-before").id
    now = time.time()
    spoil(queue, waits, not_before=now + 10)
    spoil(queue, due, not_before=now + 100_000)
    assert queue.next() == due


def test_a_session_that_began_in_the_future_counts_no_time_against_its_share(queue):
    entry = run(queue, "a")
    spoil(queue, entry.id, started=time.time() + 100_000)
    queue.conclude(entry.id, 7, "failed", "caf\udce9\x00\x1b[31m")
    assert (queue.latest("a").seconds, queue.latest("a").note) == (0.0, r"caf\xe9\x00\x1b[31m")
