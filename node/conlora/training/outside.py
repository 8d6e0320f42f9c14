"""Whether what a library raised has its reason outside this machine, where the same may do a minute later."""

from huggingface_hub.errors import LocalEntryNotFoundError

# The second is what the client of hubs makes of whatever kept it from one, HTTP's own errors included.
OUTSIDE = (ConnectionError, LocalEntryNotFoundError, TimeoutError)


def is_outside(error: BaseException | None) -> bool:
    """Libraries wrap such an error several times."""
    while error is not None:
        if isinstance(error, OUTSIDE):
            return True
        error = error.__cause__ or error.__context__
    return False
