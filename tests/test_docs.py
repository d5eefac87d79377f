"""The documentation runs: commands, study files, links, generated pages."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hpsearch.finetune.models import describe
from hpsearch.report.page import check_page
from hpsearch.spec import load_spec, parse_spec
from hpsearch.yamlfile import parse_yaml
from tests import make_docs, make_licences
from tests.finetune.photographs import tiles
from tests.support.commands import HPSEARCH, run_command

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
# Started and stopped in tests/test_main_job.py, tests/test_real_data.py and tests/service.
ELSEWHERE = ("hpsearch ui", "hpsearch serve", "hpsearch --server ", "hpsearch run --data photos --model resnet50")


def blocks(page, language, text=None):
    """Fenced blocks of one language, of a page or of a part of it."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text() if text is None else text, re.S)


def commands(page, text=None):
    """Shell lines of a page, or of a part of it, without comments."""
    lines = [line for block in blocks(page, "sh", text) for line in block.splitlines()]
    return [line.split(" #")[0].strip() for line in lines if line.split(" #")[0].strip()]


README = ROOT / "README.md"
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", README.read_text(), re.M | re.S))
MAIN_JOB = "hpsearch run --sampler tpe --trials 50"
SMALLER = {  # the same with less to train; `make run`, which CI runs, trains all of it
    r"^hpsearch run (?!--sampler tpe)": lambda found: f"{found[0]}--no-tracking ",  # the main job and the comparison are mirrored
    r"^hpsearch (run|compare)(?!.*space\.epochs)": lambda found: f"{found[0]} --set space.epochs=2",
    r"--repeats (\d+)": lambda found: f"--repeats {min(2, int(found[1]))}",
    r"--trials (\d+)": lambda found: f"--trials {min(5, int(found[1]))}",
    r"--initial (\d+)": lambda found: "--initial 2",
    r"--confirm \d+x\d+": lambda found: "--confirm 1x2",
    r"epochs=8": lambda found: "epochs=4",
}


def run_line(line, folder, home):
    """Runs a line of the README in a process that the system starts, with less to train."""
    for pattern, less in SMALLER.items():
        line = re.sub(pattern, less, line)
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(shlex.split(line), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def after_make_run(tmp_path_factory):
    """A folder in which the README's first command has run, with the reader's photographs and study files."""
    home = tmp_path_factory.mktemp("readme")
    for block in blocks(README, "yaml"):
        name = re.match(r"# (\S+\.yaml)\n", block)
        if name:
            (home / name.group(1)).write_text(block)
    for start, name in ((0, "temple"), (80, "flower")):
        (home / "photos" / name).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(tiles()[start + number]).save(home / "photos" / name / f"{number}.jpg")
    run_line(MAIN_JOB, home, home)
    return home


@pytest.mark.process
def test_make_run_is_the_main_job_and_both_commands_are_targets():
    for target in ("run", "test"):
        assert f"make {target} " in SECTIONS["Two commands"]
        dry = ["make", "-n", "-W", "pyproject.toml", target]
        recipe = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        runs = [line.removeprefix(".venv/bin/") for line in recipe.splitlines() if line.startswith(".venv/bin/hpsearch ")]
        assert runs == ([MAIN_JOB] if target == "run" else [])


BLOCKS = {
    f"{name}, {number}": [line for line in commands(README, f"```sh\n{block}```") if not line.startswith((*ELSEWHERE, "source ", "make "))]
    for name, text in SECTIONS.items()
    for number, block in enumerate(blocks(README, "sh", text), 1)
}


def test_the_readme_has_commands_to_run():
    assert sum(map(len, BLOCKS.values())) >= 13


@pytest.mark.process
@pytest.mark.parametrize("block", [name for name, lines in BLOCKS.items() if lines])
def test_every_command_of_a_block_of_the_readme_runs_in_its_order(block, after_make_run):
    here = after_make_run
    for line in BLOCKS[block]:
        if line.startswith("cd "):
            here = here / line.removeprefix("cd ")
        else:
            run_line(line, here, after_make_run)


STUDIES = sorted((ROOT / "studies").glob("*.yaml"))
NETWORK = {"flowers102-resnet50": "Flowers102", "cifar10-vit": "CIFAR10"}  # what has to be downloaded before the first trial


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.name)
def test_every_shipped_study_is_a_study_for_its_model(path):
    spec = load_spec(path)
    assert parse_spec(spec.resolved()).resolved() == spec.resolved()
    frozen = spec.bound(len(describe(spec.model))).resolved()["space"]["frozen_layers"]
    assert frozen["high"] == len(describe(spec.model))


@pytest.mark.process
@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.name)
def test_every_shipped_study_runs_one_trial_or_says_what_it_could_not_download(path, tmp_path):
    environment = os.environ | {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    if path.stem == "folder":
        run_command([HPSEARCH, "example", "here"], cwd=tmp_path, check=True)
        tmp_path = tmp_path / "here"
    command = [HPSEARCH, "run", path.stem, "--trials", "1", "--no-tracking"]
    done = run_command(command, cwd=tmp_path, env=environment)
    if path.stem in NETWORK:
        assert f"the data set {NETWORK[path.stem]} was not found" in done.stderr
    else:
        assert done.returncode == 0, done.stderr


def test_the_shipped_default_is_the_built_in_default():
    assert load_spec(ROOT / "studies" / "digits.yaml").resolved() == parse_spec({}).resolved()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_yaml_in_the_documentation_is_a_page_or_a_study_or_part_of_one(page):
    for block in blocks(page, "yaml"):
        values = parse_yaml(block, page.name)
        if "sections" in values:
            check_page(values, page.name)
        else:
            parse_spec(values)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def test_tests_that_the_documentation_names_are_there():
    for page in PAGES:
        for name in re.findall(r"`(?:tests/)?((?:[a-z]+/)?test_\w+\.py)[`:]", page.read_text()):
            assert (ROOT / "tests" / name).exists(), f"{page.name}: {name}"


def test_the_commands_page_is_what_the_commands_say():
    assert make_docs.PAGE.read_text() == make_docs.page(), "run `python -m tests.make_docs`"


def test_the_licences_page_is_what_the_installed_packages_say():
    assert make_licences.PAGE.read_text() == make_licences.page(), "run `python -m tests.make_licences`"


def test_every_command_is_in_the_documentation():
    text = (ROOT / "README.md").read_text()
    from hpsearch.cli import main

    for name in main.commands:
        assert f"hpsearch {name}" in text, name


def test_the_study_file_page_names_every_key():
    text = (ROOT / "docs" / "study-file.md").read_text()
    for key, value in parse_spec({}).resolved().items():
        assert f"`{key}" in text, key
        if key in ("pruner", "preprocess"):
            assert all(f"`{inner}`" in text for inner in value if inner != "name")


@pytest.mark.process
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
