"""Where the files that travel with hpsearch lie: inside an installed wheel, or beside the package in a checkout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from hpsearch.errors import FixSetup

PACKAGE = Path(__file__).resolve().parent


def folder(name: Literal["studies", "dashboards"], package: Path = PACKAGE) -> Path:
    """The folder of study files or of page specs; raises FixSetup when this installation lacks it."""
    installed, checkout = package / "_data" / name, package.parent / name
    if installed.is_dir():
        return installed
    if checkout.is_dir() and (package.parent / "pyproject.toml").is_file():
        return checkout
    raise FixSetup(f"hpsearch lacks its folder '{name}' (looked in {installed} and {checkout}): install it again")


def study_file(path: Path) -> Path:
    """`path` itself when it exists; else, for a bare name such as `digits`, the study of that name that ships with hpsearch."""
    # os.path answers no, where Path raises, for a name that no file can have
    if os.path.isfile(path) or len(path.parts) > 1:
        return path
    shipped = folder("studies") / f"{path.name.removesuffix('.yaml')}.yaml"
    return shipped if os.path.isfile(shipped) else path
