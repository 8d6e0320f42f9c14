"""Keeps what libraries tell their own developers out of what operators read."""

import warnings

import transformers


def quiet_libraries() -> None:
    """No progress bars, no notes on deprecated internals; errors still come through as exceptions."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
