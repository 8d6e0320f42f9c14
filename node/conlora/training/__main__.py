"""The trainer's process: `python -m conlora.training CHANNEL_FD MEMORY_FD`, started by the daemon; not a command for people."""

import os
import sys

from conlora.training.imports import quick_imports

if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with quick_imports():
        from conlora.training.trainer import main
    main(int(sys.argv[1]), int(sys.argv[2]))
