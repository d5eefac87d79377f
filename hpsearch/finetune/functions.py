"""The user's own code, named as "package.module:function"."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from hpsearch.errors import FixInput, nearest


def load_function(reference: str, what: str) -> Callable[..., Any]:
    """The function that `reference` names; modules in the working folder can be imported, now and by what they import later.

    `what` is its use, for messages. Raises FixInput when module or function is not there, whatever the module does.
    """
    module_name, _, name = reference.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        where = f"looked in {here} and the installed packages"
        raise FixInput(f"{what} '{reference}': importing '{module_name}' failed ({where}): {brief(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == module_name]
        raise FixInput(f"{what} '{reference}': {module_name} has no function '{name}': {nearest(name, own)}")
    found: Callable[..., Any] = function
    return found


def brief(error: BaseException) -> str:
    """An error in one line of at most 200 characters."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
