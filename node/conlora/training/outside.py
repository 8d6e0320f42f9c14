"""Whether what a library raised has its reason outside this machine, where the same may do a minute later."""

from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

# The second is what the client of hubs makes of whatever kept it from one, HTTP's own errors included.
OUTSIDE = (ConnectionError, LocalEntryNotFoundError, TimeoutError)
PASSING = (408, 429)  # a hub that is slow, or asked too often; all other answers below 500 stay as they are


def is_outside(error: BaseException | None) -> bool:
    """Libraries wrap such an error several times."""
    outside = False
    while error is not None:
        if isinstance(error, HfHubHTTPError) and _is_an_answer(error):
            return False
        outside |= isinstance(error, OUTSIDE)
        error = error.__cause__ or error.__context__
    return outside


def _is_an_answer(error: HfHubHTTPError) -> bool:
    """Whether a hub, or what stands before it, has refused this for good."""
    status = getattr(error.response, "status_code", 500)
    return 400 <= status < 500 and status not in PASSING
