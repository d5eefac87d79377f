"""Copies of what a study leaves, wherever fsspec reaches: a path, s3://, gs://, abfs://, each through its own package."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec

from hpsearch.errors import FixInput


def place(uri: str, study: str) -> tuple[Any, str]:
    """The file system behind a URI, and the folder of the study there; FixInput when there is no such file system here."""
    try:
        system, folder = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:  # fsspec names the package to install
        raise FixInput(f"artifacts: {uri} cannot be reached: {error}") from None
    return system, f"{folder.rstrip('/')}/{study}"


def deliver(files: Iterable[str], uri: str, study: str) -> str:
    """Copy files into the study's folder at `uri`, each whole or not at all where the system can; "", or what a person should do."""
    system, folder = place(uri, study)
    try:
        system.makedirs(folder, exist_ok=True)
        for file in map(Path, files):
            aside = f"{folder}/.{file.name}.part"
            with file.open("rb") as source, system.open(aside, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 22)
            system.mv(aside, f"{folder}/{file.name}")
    except Exception as error:  # of whichever store: the study is whole without its copy
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"the artifacts could not be copied to {uri} ({reason}): mend it and repeat the command, or copy them by hand"
    return ""
