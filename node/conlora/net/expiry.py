"""When a certificate's end is near, in words."""

import datetime

WARNING_SECONDS = 30 * 86400.0


def day(moment: float) -> str:
    """Seconds since the epoch as an operator reads them, in UTC."""
    return f"{datetime.datetime.fromtimestamp(moment, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def warning(end: float | None, now: float) -> str:
    """What to say of a certificate that ends soon, or has ended; nothing for others. Both in seconds since the epoch."""
    if end is None or end - now >= WARNING_SECONDS:
        return ""
    return f"{'expires' if end > now else 'has expired'} on {day(end)}"
