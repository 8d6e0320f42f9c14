"""Keeps what libraries tell their own developers out of what operators read."""

import logging
import warnings

import transformers


def quiet_libraries() -> None:
    """No progress bars, no notes on deprecated internals; errors still come through as exceptions."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # in 8 bits it says at every layer's every step that it rounds
    warnings.simplefilter("ignore", FutureWarning)
