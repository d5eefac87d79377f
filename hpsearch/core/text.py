"""Text that comes from data, trials, files and requests: what of it no store and no terminal may get, and how that is written instead.

Texts are cleaned where they come in (`Outcome`, `Facts`, stored records, names of classes and images), refused where they are to be used as
they are (study files, bodies of requests), and escaped once more by every way out (terminal, MLflow, databases, HTTP), since a database or
a folder may come from somebody else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Control characters, line separators, marks that turn the direction of text, and halves of surrogate pairs.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
REFUSED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # in what is used as it is, such as a path
ESCAPES = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
ESCAPED = re.compile(r"\\([nrt]|x[0-9a-f]{2}|u[0-9a-f]{4})")
LONGEST = 20_000  # characters of a text that is stored; a longer one loses its middle


def printable(name: str) -> str:
    r"""Returns a name with bytes that are no UTF-8 as \xff, control characters as \x1b or \n; names that differ stay different."""
    if "\\" in name and (ESCAPED.search(name) or UNSAFE.search(name)):
        name = name.replace("\\", "\\\\")
    return escaped(name)


def escaped(text: str) -> str:
    """Returns text that does nothing to a terminal, on one line."""
    return UNSAFE.sub(lambda match: escape(match[0]), text)


def escape(character: str) -> str:
    r"""Returns one character as \n, \x1b or \u202e."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return ESCAPES.get(character) or (f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}")


def harmless(text: str) -> str:
    """Returns text that does nothing to a terminal, and that every store takes; its lines stay lines."""
    return "\n".join(map(escaped, text.split("\n"))) if UNSAFE.search(text) else text


def showable(page: str) -> str:
    """Returns a whole document with what no browser should get escaped; its own lines, tabs and marks of direction stay."""
    return REFUSED.sub(lambda match: escape(match[0]), page)


def cleaned(text: str) -> str:
    """Returns text as it is stored: harmless, and of a length that tables, tags and pages can bear."""
    if len(text) > LONGEST:
        left, half = len(text) - LONGEST, LONGEST // 2
        text = f"{text[:half]} ... {left:,} characters left out ... {text[-half:]}"
    return harmless(text)


def cleaned_json(value: Any) -> Any:
    """Returns plain values with every text in them, keys included, as it is stored."""
    if isinstance(value, str):
        return cleaned(value)
    if isinstance(value, Mapping):
        return {cleaned(key) if isinstance(key, str) else key: cleaned_json(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [cleaned_json(inner) for inner in value]
    return value


def refused_text(value: Any, where: str = "") -> Iterator[str]:
    """Yields a sentence for each text among plain values that cannot be used as it is, with the key that it stands at."""
    if isinstance(value, str):
        if found := REFUSED.search(value):
            shown = escaped(value if len(value) <= 60 else f"{value[:57]}...")
            subject = f"{where}: '{shown}'" if where else f"the text '{shown}'"
            yield f"{subject} holds {named(found[0])}, which cannot be stored or shown: take it out, or rename what it names"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from refused_text(inner, f"{where}.{escaped(str(key))}" if where else escaped(str(key)))
            if isinstance(key, str) and REFUSED.search(key):
                yield from refused_text(key, f"a key{' of ' + where if where else ''}")
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        for inner in value:
            yield from refused_text(inner, where)


def named(character: str) -> str:
    """Returns what a person calls a character that is refused."""
    code = ord(character)
    if 0xD800 <= code <= 0xDFFF:
        return "a byte that is no UTF-8" if 0xDC80 <= code <= 0xDCFF else f"half a character ({escape(character)})"
    if code > 0x9F:
        return f"a mark that turns the direction of text ({escape(character)})"
    return f"a control character ({escape(character)})"
