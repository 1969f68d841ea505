"""What libraries say of themselves, kept from the user for as long as a block lasts."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def errors_only(logger_name: str | None = None) -> Iterator[None]:
    """A logger says nothing below an error. None for the root logger."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def treespec_notice_hidden() -> Iterator[None]:
    """torch.export copies a form of its own tree helpers, LeafSpec, that torch has deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*", category=FutureWarning)
        yield
