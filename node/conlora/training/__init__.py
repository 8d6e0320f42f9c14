"""The trainer: a process of its own with torch, transformers and peft. `messages`, `channel`, `arena` and `process` are
also used by the daemon and import none of them.
"""

import logging

# peft imports bitsandbytes where it is installed, which on some CPUs regrets that it can't download a faster kernel.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
