"""What studies, comparisons and registered models may be called: their names become folders, parts of URLs, and experiments in MLflow."""

from __future__ import annotations

import re

from hpsearch.errors import FixInput

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def is_name(name: str) -> bool:
    """Whether a name is safe wherever it comes to stand."""
    return bool(NAME.fullmatch(name)) and ".." not in name


def check_name(name: str, what: str = "study") -> str:
    """A name that is safe wherever it comes to stand; FixInput otherwise."""
    if not is_name(name):
        raise FixInput(
            f"the {what} name {name[:80]!r} cannot be used: take 1 to 64 of a-z 0-9 . _ - "
            "beginning with a letter or digit, such as 'flowers-tpe'"
        )
    return name
