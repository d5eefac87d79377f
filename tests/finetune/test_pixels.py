"""The pixel cache: each data set is decoded once, and what is there is complete, whoever dies or comes at the same time."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from image_files import encoded, make_folder, picture, write
from PIL import Image

from hpsearch.errors import FixSetup
from hpsearch.finetune import images, pixels, shelf
from hpsearch.finetune.images import Preprocessing, decode
from hpsearch.finetune.pixels import cache_folder, clear, decode_all, entries
from hpsearch.finetune.sources import Item, Source, open_source
from tests.support.commands import Command, run_command
from tests.waiting import until

RGB = Preprocessing(size=16, resize=20, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def pets(tmp_path):
    """12 images of two classes, one copy among them."""
    folder = make_folder(tmp_path / "pets", {"cat": 5, "dog": 6})
    shutil.copy(folder / "cat" / "0.png", folder / "dog" / "copy.png")
    return folder


@pytest.fixture
def decoded(monkeypatch):
    """How many images have been decoded so far."""
    calls = []
    original = pixels.decode
    monkeypatch.setattr(pixels, "decode", lambda data, pre: (calls.append(1), original(data, pre))[1])
    return calls


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.parent.name != "locks")


def by_name(source, done):
    """Item name -> its pixels."""
    return {item.name: done.images[row] for item, row in zip(source.items, done.rows, strict=True) if row >= 0}


# ---------------------------------------------------------------- what comes out


def test_decoding_in_parallel_is_decoding_one_by_one(pets, cache):
    source = open_source(str(pets))
    done = decode_all(source, RGB, cache, threads=4)
    assert done.fresh
    assert done.rows.tolist() == [*range(12)]
    assert done.images.shape == (12, 3, 16, 16)
    for item, row in zip(source.items, done.rows, strict=True):
        alone = decode(item.path.read_bytes(), RGB)
        assert (done.images[row] == alone.image).all()
        assert (done.thumbnails[row] == alone.thumbnail).all()
        assert done.statistics[row, :2].tolist() == [40, 30]
    assert not done.images.flags.writeable
    assert isinstance(done.images, np.memmap)
    raw = np.fromfile(done.folder / "images.u8", dtype=np.uint8)
    assert (raw == done.images.ravel()).all()
    names = [item.name for item in source.items]
    first, copy = names.index("cat/0.png"), names.index("dog/copy.png")
    assert done.digests[first] == done.digests[copy]
    assert len(set(done.digests.tolist())) == 11
    assert all(len(digest) == 16 for digest in done.digests.tolist())


def test_statistics_describe_an_image(tmp_path, cache):
    for name, color in {"a/red": (255, 0, 0), "a/white": (255, 255, 255), "b/black": (0, 0, 0)}.items():
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 4), color).save(tmp_path / "d" / f"{name}.png")
    half = np.zeros((64, 64, 3), dtype=np.uint8)
    half[:32] = 255
    Image.fromarray(half).save(tmp_path / "d" / "b" / "half.png")
    done = decode_all(open_source(str(tmp_path / "d")), RGB, cache)
    red, white, black, both = done.statistics.tolist()
    assert red == pytest.approx([8, 4, 0.299, 0, 1], abs=1e-3)
    assert white == pytest.approx([8, 4, 1, 0, 0], abs=1e-3)
    assert black == pytest.approx([8, 4, 0, 0, 0], abs=1e-3)
    assert both == pytest.approx([64, 64, 0.5, 0.5, 0], abs=2e-2)


def test_what_cannot_be_used_is_named_and_has_no_row(pets, cache):
    (pets / "cat" / "1.png").write_bytes(b"")
    (pets / "cat" / "2.png").write_text("no image")
    (pets / "dog" / "0.png").unlink()
    (pets / "dog" / "0.png").symlink_to("nowhere")
    Image.new("RGBA", (9, 9)).save(pets / "dog" / "1.png")
    source = open_source(str(pets))
    for fresh in (True, False):
        done = decode_all(source, RGB, cache)
        assert done.fresh == fresh
        assert done.bad == (("cat/1.png", "empty file"), ("cat/2.png", "not an image"), ("dog/0.png", "not found"))
        assert done.rows.tolist() == [0, -1, -1, 1, 2, -1, *range(3, 9)]
        assert done.special == {"rgba": ("dog/1.png",)}
        assert len(done.images) == 9


def test_nothing_usable_is_no_error(tmp_path, cache):
    for name in "ab":
        (tmp_path / "d" / name).mkdir(parents=True)
        (tmp_path / "d" / name / "1.png").write_text(f"no image {name}")
    source = open_source(str(tmp_path / "d"))
    for _ in range(2):
        done = decode_all(source, RGB, cache)
        assert done.images.shape == (0, 3, 16, 16)
        assert done.statistics.shape == (0, 5)
        assert done.rows.tolist() == [-1, -1]
        assert len(done.bad) == 2


def test_a_file_that_changes_or_goes_between_listing_and_reading_is_bad(pets, cache, monkeypatch):
    original = pixels.stamp_all

    def list_then_change(pool, source):
        stamps = original(pool, source)
        write(pets / "cat" / "0.png", seed=77)
        (pets / "cat" / "1.png").unlink()
        return stamps

    source = open_source(str(pets))
    monkeypatch.setattr(pixels, "stamp_all", list_then_change)
    done = decode_all(source, RGB, cache)
    assert done.bad == (("cat/0.png", "changed while it was read"), ("cat/1.png", "not found"))
    monkeypatch.setattr(pixels, "stamp_all", original)
    again = decode_all(source, RGB, cache)
    assert again.fresh
    assert again.bad == (("cat/1.png", "not found"),)


# ---------------------------------------------------------------- decoded once


def test_the_second_time_nothing_is_read(pets, cache, decoded, monkeypatch):
    first = decode_all(open_source(str(pets)), RGB, cache)
    assert len(decoded) == 12
    monkeypatch.setattr(pixels, "read_file", None)
    again = decode_all(open_source(str(pets)), RGB, cache)
    assert (again.fresh, len(decoded)) == (False, 12)
    assert again.content == first.content
    for name in ("images", "thumbnails", "rows", "digests", "statistics"):
        assert np.array_equal(getattr(first, name), getattr(again, name))


def test_a_touched_moved_copied_or_relabelled_folder_is_recognised(pets, cache, decoded):
    source = open_source(str(pets))
    first = decode_all(source, RGB, cache)
    expected = by_name(source, first)

    def recognised(folder):
        source = open_source(str(folder))
        done = decode_all(source, RGB, cache)
        assert (done.fresh, done.content, len(decoded)) == (False, first.content, 12)
        assert sorted(done.rows.tolist()) == [*range(12)]
        return by_name(source, done)

    for file in pets.rglob("*.png"):
        os.utime(file, (1, 1))
    same = recognised(pets)
    copied = recognised(shutil.copytree(pets, pets.parent / "copied"))
    moved = recognised(pets.rename(pets.parent / "moved"))
    for found in (same, copied, moved):
        assert all((found[name] == expected[name]).all() for name in expected)
    (pets.parent / "moved" / "cat" / "3.png").rename(pets.parent / "moved" / "dog" / "from-cat.png")
    relabelled = recognised(pets.parent / "moved")
    assert (relabelled["dog/from-cat.png"] == expected["cat/3.png"]).all()
    assert all((relabelled[name] == expected[name]).all() for name in expected if name != "cat/3.png")


def test_labels_in_a_table_are_no_part_of_the_key(pets, cache, decoded):
    names = ["dog/0.png", *(f"cat/{i}.png" for i in range(5)), "dog/1.png"]

    def relabelled(*labels):
        (pets / "t.csv").write_text("\n".join(["path,label,split", *(f"{n},{c},train" for n, c in zip(names, labels, strict=True))]))
        return decode_all(open_source(str(pets / "t.csv")), RGB, cache)

    first = relabelled(*"abababa")
    again = relabelled(*"xyzzyxx")
    assert (again.fresh, again.content, len(decoded)) == (False, first.content, 7)


# ---------------------------------------------------------------- sets without files


def own_set(count, fingerprint, seed=0, reads=None, broken=None):
    def read(item):
        if reads is not None:
            reads.append(threading.current_thread())
        if item.index == broken:
            raise pixels.Unusable("broken here")
        return picture(seed + item.index)

    items = tuple(Item(f"train/{i}", i % 2, "train", None, i) for i in range(count))
    return Source("own:set", ("a", "b"), items, read, fingerprint=fingerprint)


def test_a_set_with_a_fingerprint_is_not_read_again(cache, decoded):
    reads = []
    first = decode_all(own_set(6, "one", reads=reads), RGB, cache, threads=3)
    assert set(reads) == {threading.main_thread()}
    assert (first.images[first.rows[2]] == decode(picture(2), RGB).image).all()
    again = decode_all(own_set(6, "one", reads=reads), RGB, cache)
    assert (again.fresh, len(reads), len(decoded)) == (False, 6, 6)
    assert decode_all(own_set(6, "two", seed=50), RGB, cache).fresh


def test_a_set_without_fingerprint_is_looked_at_and_decoded_only_when_it_has_changed(cache, decoded):
    reads = []
    decode_all(own_set(6, None, reads=reads), RGB, cache)
    again = decode_all(own_set(6, None, reads=reads), RGB, cache)
    assert (again.fresh, len(reads), len(decoded)) == (False, 12, 6)
    changed = decode_all(own_set(6, None, seed=50), RGB, cache)
    assert changed.fresh
    assert (changed.images[0] == decode(picture(50), RGB).image).all()


def test_what_failed_once_is_tried_again(pets, cache, decoded, monkeypatch):
    for _ in range(2):
        done = decode_all(own_set(6, "one", broken=3), RGB, cache)
        assert done.bad == (("train/3", "broken here"),)
        assert done.rows.tolist() == [0, 1, 2, -1, 3, 4]
        assert len(decoded) == 5
    assert decode_all(own_set(6, "one"), RGB, cache).bad == ()
    source = open_source(str(pets))
    failing, original = [True], images.plain

    def short_of_memory(image):
        if failing and failing.pop():
            raise MemoryError
        return original(image)

    monkeypatch.setattr(images, "plain", short_of_memory)
    assert decode_all(source, RGB, cache, threads=1).bad == (("cat/0.png", "not enough memory"),)
    assert decode_all(source, RGB, cache).bad == ()


def test_images_that_are_files_still_closed_are_read_in_threads(tmp_path, cache):
    """What a data set may yield: an image that Pillow has opened and not read, damaged ones too."""
    write(tmp_path / "0.jpg", seed=1, width=300, height=200)
    (tmp_path / "1.jpg").write_bytes((tmp_path / "0.jpg").read_bytes()[:-3000])
    items = tuple(Item(str(i), i, None, None, i) for i in range(2))
    source = Source("own", ("a", "b"), items, lambda item: Image.open(tmp_path / f"{item.index}.jpg"))
    done = decode_all(source, RGB, cache)
    with Image.open(tmp_path / "0.jpg") as whole:
        assert (done.images[0] == decode(np.asarray(whole), RGB).image).all()
    assert [name for name, _ in done.bad] == ["1"]
    assert "truncated" in done.bad[0][1]


# ---------------------------------------------------------------- progress, entries, clearing


def test_progress_ends_with_all_and_is_told_seldom(pets, cache, monkeypatch):
    told = []
    decode_all(open_source(str(pets)), RGB, cache, progress=lambda *words: told.append(words))
    assert told[-1] == ("Decoding images", 12, 12)
    assert {what for what, _, _ in told} == {"Decoding images"}
    shutil.copytree(pets, pets.parent / "copy", copy_function=shutil.copy)
    told.clear()
    decode_all(open_source(str(pets.parent / "copy")), RGB, cache, progress=lambda *words: told.append(words))
    assert told[-1] == ("Reading images", 12, 12)
    now = [0.0]
    monkeypatch.setattr(pixels.time, "monotonic", lambda: now[0])
    seldom = []
    tick = pixels.ticking(lambda *words: seldom.append(words[1]), "x", 100)
    for done in range(1, 101):
        now[0] += 0.015625  # 64 a second; exact in binary
        tick(done)
    assert seldom == [*range(7, 101, 7), 100]


def test_entries_are_listed_by_use_and_cleared_one_by_one(pets, cache, decoded):
    small, large = Preprocessing(8, 8, (0,), (1,)), Preprocessing(32, 32, (0,), (1,))
    keys = {size: decode_all(open_source(str(pets)), pre, cache).content for size, pre in ((8, small), (32, large))}
    os.utime(cache / "images" / keys[32] / "entry.json", (1, 1))
    listed = entries(cache)
    assert [entry.key for entry in listed] == [keys[8], keys[32]]
    assert [(entry.data, entry.images) for entry in listed] == [(str(pets), 12)] * 2
    assert listed[1].bytes > 12 * 32 * 32
    decode_all(open_source(str(pets)), large, cache)
    assert entries(cache)[0].key == keys[32]
    assert clear(cache, keys[8]) >= listed[0].bytes
    assert [entry.key for entry in entries(cache)] == [keys[32]]
    assert clear(cache, "no such key") == 0
    assert clear(cache) > 0
    assert (entries(cache), files(cache)) == ([], [])
    assert clear(cache) == 0
    assert entries(cache / "missing") == []
    assert decode_all(open_source(str(pets)), small, cache).fresh


@pytest.mark.process
def test_a_cache_that_may_not_be_written_is_not_cleared_and_says_so(pets):
    with tempfile.TemporaryDirectory() as name:  # beside pytest's own folder, which only its owner may enter
        root = Path(name) / "cache"
        decode_all(open_source(str(pets)), RGB, root)
        for place in (root / "images", root / "index", root / "locks"):
            place.chmod(0o555)
        Path(name).chmod(0o755)
        code = textwrap.dedent(f"""
            import os
            from pathlib import Path
            from hpsearch.finetune import shelf
            if os.getuid() == 0:
                os.setuid(65534)
            try:
                shelf.clear(Path({str(root)!r}))
            except Exception as error:
                print(type(error).__name__, error)
        """)
        done = run_command([sys.executable, "-c", code], check=True)
        for place in (root / "images", root / "index", root / "locks"):
            place.chmod(0o755)
        assert len(shelf.entries(root)) == 1
    assert done.stdout.startswith(f"FixSetup the cache {root} cannot be emptied (")
    assert "make it writable" in done.stdout


def test_who_has_mapped_an_entry_keeps_it_when_it_is_cleared(pets, cache):
    done = decode_all(open_source(str(pets)), RGB, cache)
    before = np.array(done.images)
    clear(cache)
    assert (done.images == before).all()


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HPSEARCH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "hpsearch"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(cache_folder()) == "/x/hpsearch"
    monkeypatch.setenv("HPSEARCH_CACHE", "/y")
    assert str(cache_folder()) == "/y"


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("damage", ["short", "long", "missing", "json", "empty json"])
def test_a_damaged_entry_is_rebuilt(pets, cache, damage):
    first = decode_all(open_source(str(pets)), RGB, cache)
    expected = np.array(first.images)
    file = first.folder / ("entry.json" if "json" in damage else "images.u8")
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(
            {"short": file.read_bytes()[:-1], "long": file.read_bytes() + b"1", "json": b'{"layout', "empty json": b""}[damage]
        )
    again = decode_all(open_source(str(pets)), RGB, cache)
    assert again.fresh
    assert (again.images == expected).all()
    assert not decode_all(open_source(str(pets)), RGB, cache).fresh


def test_a_torn_index_costs_a_look_at_the_files(pets, cache, decoded):
    decode_all(open_source(str(pets)), RGB, cache)
    (index,) = (cache / "index").iterdir()
    for content in (b"", index.read_bytes()[:-40], b"nonsense"):
        index.write_bytes(content)
        again = decode_all(open_source(str(pets)), RGB, cache)
        assert (again.fresh, again.rows.tolist(), len(decoded)) == (False, [*range(12)], 12)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_nothing_behind(pets, cache, monkeypatch, error):
    def interrupt(what, done, total):
        raise error

    with pytest.raises(error):
        decode_all(open_source(str(pets)), RGB, cache, progress=interrupt)
    assert files(cache) == []
    assert [*(cache / "images").iterdir()] == []
    assert decode_all(open_source(str(pets)), RGB, cache).fresh


SLOW = """
    import sys, time
    from pathlib import Path
    from hpsearch.finetune import pixels
    from hpsearch.finetune.images import Preprocessing
    from hpsearch.finetune.sources import open_source
    pets, cache, begun, go = map(Path, sys.argv[1:])
    original, calls = pixels.decode, []

    def decode(data, pre):
        calls.append(1)
        if len(calls) == 6:
            begun.touch()
            while not go.exists():
                time.sleep(0.01)
        return original(data, pre)

    pixels.decode = decode
    told = []
    done = pixels.decode_all(open_source(str(pets)), Preprocessing(16, 20, (0, 0, 0), (1, 1, 1)), cache, lambda *w: told.append(w[0]), 1)
    print(done.fresh, len(calls), int(done.images.sum()), sorted(set(told)))
"""


def start(pets, cache, begun, go):
    arguments = [sys.executable, "-c", textwrap.dedent(SLOW), *map(str, (pets, cache, begun, go))]
    return Command(arguments, stdout=subprocess.PIPE, text=True)


@pytest.mark.process
def test_a_killed_process_leaves_nothing_that_stays(pets, cache, tmp_path):
    begun, go = tmp_path / "begun", tmp_path / "go"
    with start(pets, cache, begun, go) as process:
        until(begun.exists)
        process.send_signal(signal.SIGKILL)
    (left,) = (cache / "images").iterdir()
    assert left.suffix == ".tmp"
    assert entries(cache) == []
    other = make_folder(tmp_path / "other", {"a": 1, "b": 1})
    decode_all(open_source(str(other)), RGB, cache)
    assert not left.exists()  # whoever comes next cleans up
    done = decode_all(open_source(str(pets)), RGB, cache)
    assert done.fresh
    assert done.rows.tolist() == [*range(12)]


@pytest.mark.process
def test_two_processes_at_once_decode_once(pets, cache, tmp_path):
    begun, go = tmp_path / "begun", tmp_path / "go"
    with start(pets, cache, begun, go) as first:
        until(begun.exists)
        waiting = []

        def progress(what, done, total):
            waiting.append(what)
            go.touch()

        second = decode_all(open_source(str(pets)), RGB, cache, progress=progress)
        printed = first.communicate()[0]
    assert printed.split("[")[0].split() == ["True", "12", str(int(second.images.sum()))]
    assert not second.fresh
    assert waiting == ["Waiting for another process that decodes these images"]
    assert len(entries(cache)) == 1


def test_a_disk_that_is_too_small_is_seen_before_anything_is_decoded(pets, cache, decoded, monkeypatch):
    monkeypatch.setattr(shelf.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(FixSetup, match=r"decoding 12 images of .*pets needs 0\.02 GB in .* HPSEARCH_CACHE"):
        decode_all(open_source(str(pets)), RGB, cache)
    assert (decoded, files(cache)) == ([], [])


@pytest.fixture
def tiny_disk(tmp_path, monkeypatch):
    """A file system of 1 MB."""
    place = tmp_path / "tiny"
    place.mkdir()
    if os.getuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    monkeypatch.setattr(shelf, "SPARE", 0)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.process
def test_a_disk_that_fills_up_meanwhile(pets, tiny_disk, monkeypatch):
    monkeypatch.setattr(shelf, "SPARE", -(10**9))  # as if there had been room at the start
    with pytest.raises(FixSetup, match="HPSEARCH_CACHE"):
        decode_all(open_source(str(pets)), Preprocessing(300, 300, (0, 0, 0), (1, 1, 1)), tiny_disk)
    assert files(tiny_disk) == []
    assert decode_all(open_source(str(pets)), RGB, tiny_disk).fresh


@pytest.mark.process
def test_a_cache_that_may_only_be_read_is_used_all_the_same(pets, tiny_disk):
    assert decode_all(open_source(str(pets)), RGB, tiny_disk).fresh
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    done = decode_all(open_source(str(pets)), RGB, tiny_disk)
    assert (done.fresh, len(done.images)) == (False, 12)
    write(pets / "cat" / "new.png", seed=5)
    with pytest.raises(FixSetup, match="HPSEARCH_CACHE"):
        decode_all(open_source(str(pets)), RGB, tiny_disk)


def test_a_cache_that_cannot_be_made(pets, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FixSetup, match=r"cannot be used .* HPSEARCH_CACHE"):
        decode_all(open_source(str(pets)), RGB, tmp_path / "file" / "cache")


def test_few_images_are_in_flight(cache):
    flying, most = [0], [0]
    lock = threading.Lock()

    def tasks():
        for i in range(200):
            with lock:
                flying[0] += 1
                most[0] = max(most[0], flying[0])
            yield i

    with pixels.crew(2) as (pool, ahead):
        results = pixels.in_order(pool, ahead, lambda i: i * i, tasks(), lambda done: None)
        for expected, result in enumerate(results):
            assert result == expected**2
            with lock:
                flying[0] -= 1
    assert most[0] <= ahead == 16


def test_what_the_bytes_say_is_the_digest():
    assert pixels.digest_of(encoded(picture(1), "PNG")) != pixels.digest_of(encoded(picture(2), "PNG"))
    assert pixels.digest_of(picture(1)) == pixels.digest_of(picture(1).copy())
    assert pixels.digest_of(picture(1)) != pixels.digest_of(picture(1)[:, ::-1])
    one, other = (Image.new("P", (4, 4)) for _ in range(2))
    one.putpalette([1, 2, 3])
    other.putpalette([3, 2, 1])
    assert pixels.digest_of(one) != pixels.digest_of(other)
