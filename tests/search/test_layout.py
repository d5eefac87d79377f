"""A study of a newer hpsearch is refused before anything of it is changed."""

import hashlib
from contextlib import closing

import pytest

from hpsearch.errors import FixSetup
from hpsearch.search.catalog import read_study
from hpsearch.search.records import LAYOUT, RECORD
from hpsearch.search.searcher import OptunaSearcher
from hpsearch.search.store import open_storage
from hpsearch.spec import parse_spec


def test_records_of_a_newer_layout_are_refused_and_left_alone(tmp_path):
    url, spec = f"sqlite:///{tmp_path}/hpsearch.db", parse_spec({"name": "s", "sampler": "random", "trials": 2})
    storage = open_storage(url, create=True)
    with closing(OptunaSearcher(spec, storage)):
        pass
    storage = open_storage(url, create=True)
    number = storage.get_study_id_from_name("s")
    about = storage.get_study_user_attrs(number)[RECORD]
    assert about["layout"] == LAYOUT
    storage.set_study_user_attr(number, RECORD, about | {"layout": LAYOUT + 1})
    storage.engine.dispose()
    before = hashlib.sha256((tmp_path / "hpsearch.db").read_bytes()).hexdigest()
    storage = open_storage(url, create=True)
    for use in (lambda: OptunaSearcher(spec, storage), lambda: read_study(storage, "s")):
        with pytest.raises(FixSetup, match=f"made by a newer hpsearch .*layout {LAYOUT + 1}.*update hpsearch"):
            use()
    storage.engine.dispose()
    assert hashlib.sha256((tmp_path / "hpsearch.db").read_bytes()).hexdigest() == before
