"""When a certificate's end is near, in words."""

import datetime

WARNING_SECONDS = 30 * 86400.0


def day(moment: float) -> str:
    """Seconds since the epoch as an operator reads them, in UTC."""
    return f"{datetime.datetime.fromtimestamp(moment, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def warns_from(start: float, end: float) -> float:
    """When a certificate's end is near: for the last third of its life, and for no more than the last month."""
    return end - min(WARNING_SECONDS, (end - start) / 3)


def warning(end: float | None, now: float, since: float | None = None) -> str:
    """What to say of a certificate that ends soon, or has ended; nothing for others. All in seconds since the epoch.

    since: see `warns_from`; where it is not known, a month before the end.
    """
    if end is None or now <= (end - WARNING_SECONDS if since is None else since):
        return ""
    return f"{'expires' if end > now else 'has expired'} on {day(end)}"
