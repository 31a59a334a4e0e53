"""Logging to stderr."""

from __future__ import annotations

import logging
import os
import sys
import warnings


class _Lines(logging.Formatter):
    """Formatter that prints warnings as `note: ...` and the rest as plain text."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        text = record.getMessage()
        return f"note: {text}" if record.levelno >= logging.WARNING else text


def quiet_imports(*, verbose: bool = False) -> None:
    """Hide what libraries log while they are imported.

    peft imports bitsandbytes if it is installed, and that logs what it lacks for the processor.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.NOTSET if verbose else logging.ERROR)


def set_up_logs(*, quiet: bool = False, verbose: bool = False, offline: bool = False) -> None:
    """Send our log to stderr; messages of other libraries only with `verbose`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logger = logging.getLogger("kgcli")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)
    quiet_imports(verbose=verbose)
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is imported
    if not verbose:
        warnings.simplefilter("ignore")
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
