"""ConLoRA: fine-tune large models together with LoRA, with no server in the middle."""

__version__ = "0.1.0"
