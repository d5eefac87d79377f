"""YAML as study files use it: safe, limited in size and depth, with numbers and duplicate keys as people expect. Only here."""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hpsearch.core.text import refused_text
from hpsearch.errors import FixInput

MAX_BYTES = 256 * 1024
MAX_DEPTH = 20
MAX_VALUES = 10_000  # keys and values; PyYAML takes 20 to 50 microseconds of processor time for one
MAX_DIGITS = 100  # characters of a number: 1:1:1:... (YAML 1.1 counts in sixties) takes seconds, others cannot be printed
MAX_INTEGER = 1 << 63
SURROGATE = re.compile("[\ud800-\udfff]")  # an escape can write it; no file or database can hold it
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels; a study has no such thing"
TOO_MANY = f"there are more than {MAX_VALUES:,} keys and values, which no study needs; leave some out"


class Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-3 as a number and refuses duplicate keys, aliases and deep nesting."""

    depth = 0
    values = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose with limits: an alias can expand a small file without bound."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise FixInput(f"{mark(event.start_mark)}: YAML aliases (*name) are not supported; write the values out")
        self.depth += 1
        self.values += 1
        if self.depth > MAX_DEPTH or self.values > MAX_VALUES:
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise FixInput(f"{mark(event.start_mark)}: {TOO_DEEP if self.depth > MAX_DEPTH else TOO_MANY}")
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.ScalarNode) and SURROGATE.search(node.value):
            raise FixInput(f"{mark(node.start_mark)}: half a character (\\ud800 to \\udfff) is no text")
        self.depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value; PyYAML's own errors on `!!int ''`, `!!bool x`, a date such as 2026-99-99 or a number of 5,000 digits get their place."""
        try:
            if node.tag in NUMBERS and len(node.value) > MAX_DIGITS:
                raise ValueError
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
            text = str(node.value)
            shown = text if len(text) <= 40 else f"{text[:37]}..."
            raise FixInput(f"{mark(node.start_mark)}: {shown!r} does not fit its tag or is too long; use plain values") from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A dict whose keys are plain text, each once."""
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                raise FixInput(f"{mark(key.start_mark)}: a key must be a plain word")
            if key.value in seen:
                raise FixInput(f"{mark(key.start_mark)}: the key '{key.value}' stands twice; keep one")
            seen.add(key.value)
            if key.tag in self.yaml_constructors:
                key.tag = "tag:yaml.org,2002:str"  # `on:` is the word, not True
        return {str(k): v for k, v in super().construct_mapping(node, deep).items()}


# YAML 1.1 wants a dot and a sign in floats, so plain SafeLoader reads 1e-3 as text.
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"([-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+|[-+]?\.\d+[eE][-+]?\d+)$"), list("-+0123456789.")
)


def refuse_tag(loader: Loader, node: yaml.Node) -> None:
    """Bytes have no place in a study, and would pass for a list of numbers."""
    del loader
    raise FixInput(f"{mark(node.start_mark)}: the YAML tag '!!binary' is not allowed; use plain values")


Loader.add_constructor("tag:yaml.org,2002:binary", refuse_tag)


def mark(position: Any) -> str:
    """Line and column, from 1."""
    return f"line {position.line + 1}, column {position.column + 1}"


def parse_yaml(text: str, source: str) -> Any:
    """Plain values from YAML text; raises FixInput with line and column."""
    try:
        return yaml.load(text, Loader)
    except yaml.constructor.ConstructorError as error:
        if "could not determine a constructor" in str(error):
            tag = str(error.problem).rpartition("the tag ")[2]
            raise FixInput(f"{source}, {mark(error.problem_mark)}: the YAML tag {tag} is not allowed; use plain values") from None
        raise FixInput(f"{source}, {mark(error.problem_mark)}: {error.problem}") from None
    except yaml.MarkedYAMLError as error:
        raise FixInput(f"{source} is not YAML: {mark(error.problem_mark)}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise FixInput(f"{source} is not YAML: {error}") from None
    except FixInput as error:
        raise FixInput(f"{source}, {error}") from None
    except OverflowError:  # "\UFFFFFFFF"
        raise FixInput(f"{source} is not YAML: a value does not fit its escape; use plain values") from None


def check_shape(values: Any) -> None:
    """Raises FixInput for plain values, of a study that came as JSON or from Python, that are nested or many as no YAML text may be."""
    for count, (_, depth) in enumerate(walk(values)):
        if depth > MAX_DEPTH or count >= MAX_VALUES:
            raise FixInput(TOO_DEEP if depth > MAX_DEPTH else TOO_MANY)


def check_leaves(values: Any) -> None:
    """Raises FixInput for integers and texts among plain values that no database can hold, wherever they stand, a line each."""
    large = any(isinstance(value, int) and abs(value) > MAX_INTEGER for value, _ in walk(values))
    found = ["there is a number of more than 64 bits, which no setting needs; write a smaller one"] if large else []
    if found := [*found, *refused_text(values)]:
        raise FixInput("\n".join(found))


def walk(values: Any) -> Iterator[tuple[Any, int]]:
    """Yields all keys and values inside plain values, each with how deep it lies, level by level."""
    waiting = deque([(values, 1)])
    while waiting:
        value, depth = waiting.popleft()
        yield value, depth
        if isinstance(value, Mapping):
            waiting.extend((inner, depth + 1) for item in value.items() for inner in item)
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
            waiting.extend((inner, depth + 1) for inner in value)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a study file; raises FixInput when it cannot be read, is too large, or is no mapping."""
    try:
        # Not blocking: a named pipe would wait for its writer for ever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FixInput(f"{path} is not a file but a pipe or a device: write the study into a file")
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode("utf-8")
    except FileNotFoundError:
        raise FixInput(f"no study file '{path}'; `hpsearch run` without a file runs the embedded default") from None
    except IsADirectoryError:
        raise FixInput(f"{path} is a folder, not a study file. Is it a folder of images? Use --data {shlex.quote(str(path))}") from None
    except UnicodeDecodeError:
        raise FixInput(f"{path} is not a text file in UTF-8") from None
    except OSError as error:
        raise FixInput(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # a name that no file can have
        raise FixInput(f"{str(path)!r} cannot be read: {error}") from None
    if len(raw) > MAX_BYTES:
        raise FixInput(f"{path} is larger than {MAX_BYTES // 1024} KiB: not a study file")
    values = parse_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise FixInput(f"{path} must hold keys such as `sampler: tpe`, not a {type(values).__name__}")
    return values


def write_yaml(value: Any, flow: bool = False) -> str:
    """A mapping as YAML that `parse_yaml` reads back, a key a line where it is short; `flow`: any value, on one line."""
    if flow:
        text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1 << 16, sort_keys=False)
        return str(text).removesuffix("\n").removesuffix("\n...")
    lines = (
        f"{key}: {write_yaml(entry, flow=True)}" if not isinstance(entry, dict) or len(str(entry)) < 80 else block({key: entry})
        for key, entry in value.items()
    )
    return "\n".join(line.rstrip("\n") for line in lines) + "\n"


def block(value: object) -> str:
    """A value over several lines, its innermost mappings on one."""
    text: str = yaml.safe_dump(value, default_flow_style=None, allow_unicode=True, width=100, sort_keys=False)
    return text
