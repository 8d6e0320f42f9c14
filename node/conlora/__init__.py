"""ConLoRA: fine-tune large models together with LoRA, with no server in the middle."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conlora.training.joining import Guest, join

__version__ = "0.1.0"
__all__ = ["Guest", "__version__", "join"]


def __getattr__(name: str) -> Any:
    """For programs that join a node; what the command line imports must not load the training stack."""
    if name in ("Guest", "join"):
        from conlora.training import joining

        return getattr(joining, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
