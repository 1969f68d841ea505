"""The front door: command line, settings, composition root, Python client."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelway.client import Client, Inference

__all__ = ["Client", "Inference"]


def __getattr__(name: str) -> object:
    """Import the client where it is used: the command line has to answer without numpy."""
    if name in __all__:
        from modelway import client  # noqa: PLC0415  see above

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
