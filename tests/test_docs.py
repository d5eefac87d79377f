"""The documentation runs: commands, study files, links, generated pages."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpsearch.spec import load_spec, parse_spec
from hpsearch.yamlfile import parse_yaml
from tests import make_docs

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
SERVERS = ("hpsearch ui",)  # tests/test_main_job.py starts these and stops them


def blocks(page, language):
    """Fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


def commands(page):
    """Shell lines, without comments."""
    return [line.split(" #")[0].split("  #")[0].strip() for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]


def test_every_command_of_the_readme_runs_in_its_order_in_an_empty_folder(tmp_path):
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for block in blocks(ROOT / "README.md", "yaml"):
        name = re.match(r"# (\S+\.yaml)\n", block)
        if name:
            (tmp_path / name.group(1)).write_text(block)
    ran = []
    for line in commands(ROOT / "README.md"):
        if line.startswith("make "):  # the targets' own commands; `make test` is what is running now
            dry = ["make", "-n", "-W", "pyproject.toml", line.split()[1]]
            recipe = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True)
            runs = [part for part in recipe.stdout.splitlines() if part.startswith(".venv/bin/hpsearch ")]
            assert bool(runs) == (line == "make run")
            line = runs[0].removeprefix(".venv/bin/") if runs else ""
        if not line or line.startswith(SERVERS) or line.startswith("source "):
            continue
        done = subprocess.run(shlex.split(line), cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        ran.append(line)
    assert len(ran) >= 8
    assert ran[0] == "hpsearch run --sampler tpe --trials 50"
    assert "Gain" in subprocess.run(shlex.split(ran[0]), cwd=tmp_path, env=environment, capture_output=True, text=True).stdout


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_study_is_parsed_and_runs_one_trial(path, tmp_path):
    spec = load_spec(path)
    assert parse_spec(spec.resolved()).resolved() == spec.resolved()
    hpsearch = str(Path(sys.executable).parent / "hpsearch")
    done = subprocess.run([hpsearch, "run", path.stem, "--trials", "1", "--no-tracking"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_shipped_default_is_the_built_in_default():
    assert load_spec(ROOT / "studies" / "digits.yaml").resolved() == parse_spec({}).resolved()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_yaml_in_the_documentation_is_a_study_or_part_of_one(page):
    for block in blocks(page, "yaml"):
        values = parse_yaml(block, page.name)
        parse_spec(values)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def test_the_commands_page_is_what_the_commands_say():
    assert make_docs.PAGE.read_text() == make_docs.page(), "run `python -m tests.make_docs`"


def test_every_command_is_in_the_documentation():
    text = (ROOT / "README.md").read_text()
    from hpsearch.cli import main

    for name in main.commands:
        assert f"hpsearch {name}" in text, name


def test_the_study_file_page_names_every_key():
    text = (ROOT / "docs" / "study-file.md").read_text()
    for key, value in parse_spec({}).resolved().items():
        assert f"`{key}" in text, key
        if key == "pruner":
            assert all(f"`{inner}`" in text for inner in value if inner != "name")


def test_a_built_wheel_runs_the_default_elsewhere(tmp_path):
    wheel = tmp_path / "wheel"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", str(wheel), str(ROOT)], check=True)
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", str(site), *map(str, wheel.glob("*.whl"))], check=True)
    (tmp_path / "work").mkdir()
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); import hpsearch, hpsearch.cli; print(hpsearch.__file__); hpsearch.cli.main()"
    command = [sys.executable, "-c", code, str(site), "run", "--trials", "2", "--no-tracking", "--set", "space.epochs=2"]
    done = subprocess.run(command, cwd=tmp_path / "work", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(site) in done.stdout
    assert (tmp_path / "work" / "hpsearch-runs" / "digits-tpe" / "report.html").stat().st_size > 1_000_000
    shutil.rmtree(site)
