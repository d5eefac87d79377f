"""Safe with what strangers send: nothing but tensors is loaded, bombs are refused by their headers, passwords stay where they are."""

from __future__ import annotations

import ast
import io
import os
import pickle
import struct
import subprocess
import sys
import zlib

import pytest
from click.testing import CliRunner
from PIL import Image

from hpsearch.cli import main
from hpsearch.resources import PACKAGE
from hpsearch.spec import parse_spec
from tests.bad_input import Canary, declared, fill, photos, torch_file
from tests.support.commands import HPSEARCH, run_command

SOURCES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}

# ---------------------------------------------------------------- loaders

CODE = {  # what runs what it reads
    *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle", "code", "runpy", "imp"),
}
CALLS = (
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.jit.load",
    "torch.hub.load",
    "torch.package.PackageImporter",
)
ALLOWED = {
    ("finetune/pretrained.py", "pickle"),  # the name of an error
    ("finetune/cuts.py", "exec"),  # of code that torch.fx writes of the traced network
    ("finetune/cuts.py", "compile"),
    ("yamlfile.py", "yaml.safe_dump"),  # writes
}


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}, node.args


def suspicious(name, tree):
    """What in a module could run what it reads."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (n.split(".")[0] for n in names if n.split(".")[0] in CODE)
    for function, options, arguments in calls(tree):
        last = function.rpartition(".")[2]
        if any(
            (
                function in CALLS,
                function.startswith("pickle."),
                function.startswith("yaml.") and last not in ("constructor", "load"),
                function == "yaml.load" and (len(arguments) < 2 or ast.unparse(arguments[1]) != "Loader"),
                function == "torch.load" and options.get("weights_only") != "True",
                options.get("allow_pickle", "False") != "False",
                options.get("shell", "False") != "False",
                last in ("load_url", "load_state_dict_from_url", "read_pickle"),
            )
        ):
            yield function


def test_nothing_loads_what_could_be_code():
    found = {(name, what) for name, tree in SOURCES.items() for what in suspicious(name, tree)}
    assert found == ALLOWED


@pytest.mark.parametrize(
    "code",
    [
        *("import pickle", "from joblib import load", "import dill as d", "torch.load(path)", "torch.load(path, weights_only=False)"),
        *("np.load(path, allow_pickle=True)", "yaml.load(text)", "yaml.load(text, yaml.Loader)", "yaml.unsafe_load(text)", "eval(text)"),
        *("exec(text)", "subprocess.run(text, shell=True)", "os.system(text)", "torch.jit.load(path)", "pd.read_pickle(path)"),
    ],
)
def test_the_reader_of_sources_sees_what_could_be_code(code):
    assert list(suspicious("x.py", ast.parse(code)))


@pytest.mark.parametrize("code", ["torch.load(path, weights_only=True)", "np.load(path)", "yaml.load(text, Loader)", "model.eval()"])
def test_the_reader_of_sources_lets_the_rest_pass(code):
    assert not list(suspicious("x.py", ast.parse(code)))


# ---------------------------------------------------------------- canaries


def canaries(folder):
    """Pickles that leave a file `hacked` behind when they are loaded, in the ways in which checkpoints come."""
    for protocol in (0, 2, 4, 5):
        for suffix in ("pt", "pth", "bin", "ckpt", "safetensors"):
            path = folder / f"p{protocol}.{suffix}"
            path.write_bytes(pickle.dumps({"state_dict": Canary()}, protocol))
            yield path
    for zipped in (True, False):
        path = folder / f"torch-{zipped}.pt"
        torch_file(path, lambda: {"model": Canary()}, _use_new_zipfile_serialization=zipped)
        yield path


def test_a_canary_sings_when_it_is_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Canary()))
    assert (tmp_path / "hacked").exists()


def test_no_door_that_loads_weights_runs_a_pickle(tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    fill(work, photos("cat", "dog", each=8))
    files = list(canaries(work))
    assert len(files) == 22
    for file in files:
        result = CliRunner().invoke(main, ["check", "photos", "--model", "glyphnet", "--weights", file.name])
        assert (result.exit_code, isinstance(result.exception, SystemExit)) == (2, True), (file, result.output, result.exception)
        assert file.name in result.output
    (work / "m").mkdir()
    (work / "m" / "config.json").write_text('{"format": 1, "model": "glyphnet", "classes": ["a", "b"], "preprocessing": {}}')
    for file in files[:5]:
        (work / "m" / "model.safetensors").write_bytes(file.read_bytes())
        result = CliRunner().invoke(main, ["predict", "m", "photos"])
        assert (result.exit_code, isinstance(result.exception, SystemExit)) == (2, True), (result.output, result.exception)
    (work / "sly.py").write_text('from pathlib import Path\nPath("hacked").touch()\ndef net(n): ...\n')
    (work / "m" / "config.json").write_text('{"format": 1, "model": "sly:net", "classes": ["a", "b"], "preprocessing": {}}')
    result = CliRunner().invoke(main, ["predict", "m", "photos"])
    assert (result.exit_code, "--code sly:net" in result.output) == (2, True), "code runs only when the user names it"
    assert not list(tmp_path.rglob("hacked"))


# ---------------------------------------------------------------- bombs


def png_bomb(width, height):
    """A real PNG, one bit a pixel, that is a thousandth of its pixels in size."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compressobj(9)
    row, data = b"\0" * (1 + width // 8), []
    for _ in range(height):
        data.append(rows.compress(row))
    data.append(rows.flush())
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"".join(data)) + chunk(b"IEND", b"")


def small(kind):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, kind)
    return buffer.getvalue()


def claims(kind, width, height):
    """A small image whose header claims another size."""
    raw = bytearray(small(kind))
    if kind == "JPEG":
        at = raw.index(b"\xff\xc0") + 5
        raw[at : at + 4] = struct.pack(">HH", height, width)
    elif kind == "BMP":
        raw[18:26] = struct.pack("<ii", width, height)
    elif kind == "GIF":
        raw[6:10] = struct.pack("<HH", width, height)
    return bytes(raw)


BOMBS = {
    "real.png": lambda: png_bomb(40_000, 40_000),
    "declared.png": lambda: declared(60_000, 60_000),
    "claims.jpg": lambda: claims("JPEG", 65_000, 65_000),
    "claims.bmp": lambda: claims("BMP", 60_000, 60_000),
    "claims.gif": lambda: claims("GIF", 65_000, 65_000),
    "claims.ppm": lambda: b"P6 60000 60000 255\n" + b"\0" * 100,
    "claims.pgm": lambda: b"P5 60000 60000 65535\n" + b"\0" * 100,
}
MEASURE = """
import re, sys
from pathlib import Path
from hpsearch.finetune.images import Preprocessing, Unusable, decode, read_file
def most(): return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # getrusage counts the parent's
pre = Preprocessing(224, 256, (0.5,) * 3, (0.5,) * 3)
decode(Path(sys.argv[1]).read_bytes(), pre)
idle = most()
for name in sys.argv[2:]:
    try:
        decode(read_file(Path(name)), pre)
        print(name, "was decoded")
    except Unusable as error:
        print(name, error)
print("MiB above idle:", most() - idle)
"""


@pytest.mark.process
def test_bombs_are_refused_by_their_header_in_little_memory(tmp_path):
    (tmp_path / "sound.png").write_bytes(small("PNG"))
    for name, content in BOMBS.items():
        (tmp_path / name).write_bytes(content())
        assert (tmp_path / name).stat().st_size < 2**20
    done = subprocess.run([sys.executable, "-c", MEASURE, "sound.png", *BOMBS], cwd=tmp_path, capture_output=True, text=True, check=True)
    *lines, last = done.stdout.splitlines()
    assert len(lines) == len(BOMBS)
    assert all(line.endswith("megapixels, more than 100") for line in lines), done.stdout
    assert float(last.rpartition(" ")[2]) < 200


# ---------------------------------------------------------------- passwords

SECRET = "correct-horse-canary"
ADDRESS = f"http://someone:{SECRET}@127.0.0.1:9"
POSTGRES = f"postgresql+psycopg://someone:{SECRET}@127.0.0.1:9/studies"


def hpsearch(*arguments, **environment):
    done = run_command([HPSEARCH, *arguments], env=os.environ | environment)
    return done.returncode, done.stdout + done.stderr


def leaks(folder):
    return [str(path) for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.mark.process
@pytest.mark.parametrize("way", ["flags", "environment"])
def test_passwords_reach_no_output_and_no_file(tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    run = ["run", "--trials", "2", "--workers", "1", "--set", "space.epochs=1"]
    code, text = hpsearch(*run, "--tracking-uri", ADDRESS) if way == "flags" else hpsearch(*run, MLFLOW_TRACKING_URI=ADDRESS)
    assert (code, SECRET in text) == (0, False), text
    assert "racking behind" in text
    assert len(list(tmp_path.rglob("*"))) > 5
    assert (tmp_path / "hpsearch-runs" / "digits-tpe" / "tracking.log").stat().st_size > 100
    assert "tracking behind by" in (tmp_path / "hpsearch-runs" / "digits-tpe" / "report.html").read_text()
    assert leaks(tmp_path) == []


LOOKS = [["list"], ["show"], ["report"], ["best"], ["test"], ["export", "-o", "out"], ["sync"], ["compare", "a", "b"], ["run"]]


@pytest.mark.process
@pytest.mark.parametrize("command", LOOKS, ids=" ".join)
@pytest.mark.parametrize("way", ["flags", "environment"])
@pytest.mark.parametrize(
    "url", [POSTGRES, POSTGRES.replace("9/", "port/"), f"nothing://x:{SECRET}@h/d", f"postgresql://h/d?password={SECRET}"]
)
def test_a_password_in_a_storage_url_is_never_shown(tmp_path, monkeypatch, command, way, url):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hpsearch.search.server.ABSENT", 0.0)  # it is not waited for
    if way == "environment":
        monkeypatch.setenv("OPTUNA_STORAGE", url)
    result = CliRunner().invoke(main, [*command, *(["--storage", url] if way == "flags" else [])])
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in (1, 2)
    assert SECRET not in result.output
    assert leaks(tmp_path) == []


@pytest.mark.parametrize("uri", [ADDRESS, f"ftp://x:{SECRET}@h", f"http://x:{SECRET}@[h", f"x:{SECRET}@h"])
def test_a_password_in_a_tracking_address_is_never_shown(tmp_path, monkeypatch, uri):
    monkeypatch.chdir(tmp_path)
    for command in (["ui"], ["sync"], ["export", "-o", "out", "--register", "x"]):
        result = CliRunner().invoke(main, [*command, "--tracking-uri", uri])
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        assert SECRET not in result.output
    assert leaks(tmp_path) == []


# ---------------------------------------------------------------- the user's own code

OWN = "from pathlib import Path\nPath('imported').touch()\n"


@pytest.mark.process
def test_code_beside_the_data_runs_only_when_it_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE.parent))
    fill(tmp_path, photos("cat", "dog", each=8))
    for name in ("own.py", "photos/__init__.py", "photos/cat/own.py", "conftest.py", "hpsearch_plugin.py"):
        (tmp_path / name).write_text(OWN)
    done = run_command([HPSEARCH, "check", "photos", "--model", "glyphnet"])
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "imported").exists()
    done = run_command([HPSEARCH, "check", "own:images"])
    assert (done.returncode, "own has no function 'images'" in done.stderr) == (2, True), done.stderr
    assert (tmp_path / "imported").exists()


@pytest.mark.process
def test_the_users_own_code_is_recorded_with_the_study():
    resolved = parse_spec({"data": "own.sets:images", "model": "nets:small", "name": "x"}).resolved()
    assert (resolved["data"], resolved["model"]) == ("own.sets:images", "nets:small")
