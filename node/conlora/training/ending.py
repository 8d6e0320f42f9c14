"""How a trainer died, in words; and whether it was for lack of memory, which a restart alone does not mend."""

import re
import signal
from pathlib import Path

STARVED = re.compile(r"\bMemoryError\b|OutOfMemoryError|out of memory|can't allocate memory", re.IGNORECASE)
LONGEST_WORDS = 300
LESS = "it needs less with a smaller training.batch_size (and more gradient_accumulation), or activation_checkpointing"


def in_words(code: int, last_line: str, log: Path | None, killed_for_memory: bool) -> str:
    """What happened to a trainer with this exit status (or minus a signal); empty where it ended in good order.

    last_line: of what it printed. killed_for_memory: the kernel has ended processes for lack of memory while it ran.
    """
    if code == 0:
        return ""
    starved = STARVED.search(last_line) is not None
    how = f"the trainer exited with status {code}"
    if code < 0:
        how = f"the trainer was ended by {signal.Signals(-code).name}"
    if code == -signal.SIGKILL and killed_for_memory:
        starved, how = True, f"{how}, while the kernel ended processes for lack of memory"
    if last_line:
        how += f" ({last_line[:LONGEST_WORDS]}; more in {log})"
    return f"{how}; {LESS}" if starved else how


def memory_kills() -> int:
    """How many processes the kernel has ended for lack of memory since it started; 0 where it does not tell."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
