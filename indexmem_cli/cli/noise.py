"""Keeps the chatter of libraries off the screen; what a user should know comes as a Notice."""

import logging
import os
import warnings


def hush_libraries(verbose: bool) -> None:
    """Silence progress bars, warnings and logs; call before anything heavy is imported.

    With `verbose`, only telemetry and progress bars are turned off.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if verbose:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.simplefilter("ignore")
    # Failures that matter arrive as exceptions, so nothing is lost.
    logging.disable(logging.CRITICAL)
