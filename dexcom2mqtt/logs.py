"""Logging: its format, its levels, and tracebacks without secrets."""

from __future__ import annotations

import logging
import os
import traceback


def set_up_logging(level: str) -> None:
    """Log to standard error at ``level``; libraries at warning, and urllib3 not at all: it logs complete URLs."""
    # systemd's journal has the time already.
    time = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    logging.basicConfig(format=f"{time}%(levelname)-7s %(message)s", level=logging.WARNING)
    logging.getLogger("dexcom2mqtt").setLevel(level.upper())
    logging.getLogger("urllib3").setLevel(logging.CRITICAL + 1)


def redacted_traceback(error: BaseException) -> str:
    """Return a traceback with the exception's type but not its text, which might contain a secret."""
    frames = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))
    return f"{frames}{type(error).__name__}"
