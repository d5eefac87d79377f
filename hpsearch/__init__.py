"""hpsearch: hyperparameter search built around fine-tuning trials.

The package is light to import: heavy libraries load inside the room that owns them, when a verb needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpsearch.client import Client as Client

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`from hpsearch import Client`, which loads on use."""
    if name == "Client":
        from hpsearch.client import Client

        return Client
    raise AttributeError(f"module 'hpsearch' has no attribute '{name}'")
