"""Names and counts as they may be shown: light to import."""

from __future__ import annotations

from collections.abc import Sequence

from hpsearch.core.text import escaped, printable

__all__ = ("escaped", "first", "printable", "several")


def first(names: Sequence[str], n: int = 3, escape: bool = True) -> str:
    """The first few names."""
    return ", ".join(printable(name) if escape else name for name in names[:n]) + (", ..." if len(names) > n else "")


def several(n: int, one: str, many: str | None = None) -> str:
    """A count with its noun."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
