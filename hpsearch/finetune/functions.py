"""The user's own code, named as "package.module:function"."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hpsearch.errors import FixInput, nearest


def load_function(reference: str, what: str) -> Callable[..., Any]:
    """The function that `reference` names, in a module of the working folder or an installed one.

    The working folder is on the import path while the module is imported and while the function is called, at no other time: other files
    there may be called like modules that hpsearch needs. `what` is its use, for messages. Raises FixInput when module or function is not
    there, whatever the module does.
    """
    module_name, _, name = reference.partition(":")
    here = os.getcwd()
    importlib.invalidate_caches()
    try:
        with importable(here):
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        where = f"looked in {here} and the installed packages"
        raise FixInput(f"{what} '{reference}': importing '{module_name}' failed ({where}): {brief(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == module_name]
        raise FixInput(f"{what} '{reference}': {module_name} has no function '{name}': {nearest(name, own)}")

    @functools.wraps(function)
    def call(*values: Any, **named: Any) -> Any:
        with importable(here):  # for what it imports when it is called
            return function(*values, **named)

    return call


@contextmanager
def importable(folder: str) -> Iterator[None]:
    """Puts a folder first on the import path."""
    before = list(sys.path)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path[:] = [entry for entry in sys.path if entry != folder or entry in before]


def brief(error: BaseException) -> str:
    """An error in one line of at most 200 characters."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
