"""Names and counts as they may be shown: light to import."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Control characters, line separators, marks that turn the direction of text, and halves of surrogate pairs.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
ESCAPES = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
ESCAPED = re.compile(r"\\([nrt]|x[0-9a-f]{2}|u[0-9a-f]{4})")


def printable(name: str) -> str:
    r"""The name with bytes that are no UTF-8 as \xff, control characters as \x1b or \n, and so on; names that differ stay different."""
    if "\\" in name and (ESCAPED.search(name) or UNSAFE.search(name)):
        name = name.replace("\\", "\\\\")
    return escaped(name)


def escaped(text: str) -> str:
    """Text that does nothing to a terminal."""
    return UNSAFE.sub(lambda match: escape(match[0]), text)


def escape(character: str) -> str:
    r"""One character as \n, \x1b or \u202e."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return ESCAPES.get(character) or (f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}")


def first(names: Sequence[str], n: int = 3, escape: bool = True) -> str:
    """The first few names."""
    return ", ".join(printable(name) if escape else name for name in names[:n]) + (", ..." if len(names) > n else "")


def several(n: int, one: str, many: str | None = None) -> str:
    """A count with its noun."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
