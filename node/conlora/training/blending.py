"""What vectors are mixed with where torch is at hand: one pass where numpy needs three."""

import torch

from conlora.core.schema import Vector


def lerp(start: Vector, end: Vector, share: float, out: Vector) -> None:
    """A `conlora.core.mixing.Blend`. The vectors have to be writable, or torch warns."""
    torch.lerp(torch.from_numpy(start), torch.from_numpy(end), share, out=torch.from_numpy(out))
