"""What scripts print: messages of the logger "refersplat", once, above progress bars."""

from __future__ import annotations

import logging
import sys

from tqdm import tqdm


class _AboveBars(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def setup_logging() -> None:
    """Send the project's messages to stderr; warnings are marked."""
    logger = logging.getLogger("refersplat")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(_AboveBars())
    logger.handlers[0].setFormatter(_Format())


class _Format(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        mark = "warning: " if record.levelno >= logging.WARNING else ""
        return mark + record.getMessage()
