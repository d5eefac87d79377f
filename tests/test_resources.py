from __future__ import annotations

from pathlib import Path

import pytest

from hpsearch.errors import FixSetup
from hpsearch.resources import folder, study_file


@pytest.mark.parametrize(("name", "file"), [("studies", "digits.yaml"), ("dashboards", "study.yaml")])
def test_a_checkout_has_its_folders_beside_the_package(name, file):
    assert (folder(name) / file).is_file()


def test_an_installed_wheel_has_them_inside_and_prefers_those(tmp_path):
    package = tmp_path / "hpsearch"
    (package / "_data" / "studies").mkdir(parents=True)
    (tmp_path / "studies").mkdir()
    (tmp_path / "pyproject.toml").touch()
    assert folder("studies", package) == package / "_data" / "studies"


def test_a_folder_of_somebody_else_in_site_packages_is_not_ours(tmp_path):
    (tmp_path / "studies").mkdir()
    with pytest.raises(FixSetup, match=r"'studies'.*install it again"):
        folder("studies", tmp_path / "hpsearch")


@pytest.mark.parametrize("name", ["digits", "digits.yaml"])
def test_a_bare_name_finds_the_study_that_ships(folder_path, name):
    assert study_file(Path(name)) == folder("studies") / "digits.yaml"


def test_a_file_of_the_user_wins_over_a_shipped_one(folder_path):
    (folder_path / "digits.yaml").write_text("trials: 3")
    assert study_file(Path("digits.yaml")) == Path("digits.yaml")


@pytest.mark.parametrize("name", ["nothing.yaml", "deep/digits", "../digits.yaml"])
def test_a_name_that_is_nowhere_is_left_for_the_reader_to_refuse(folder_path, name):
    assert study_file(Path(name)) == Path(name)


@pytest.fixture
def folder_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path
