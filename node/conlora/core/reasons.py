"""The short names under which what a peer sends is refused, counted and exported.

All of them are ours, so that no peer can make up one, or bring forth a new series in whoever counts by them.
"""

OF_SNAPSHOTS = ("format", "keys", "dtype", "shape", "digest", "not-finite", "norm", "replayed", "reordered")
OF_SKETCHES = (
    "sketch-key", "sketch-signature", "sketch-format", "sketch-federation", "sketch-name", "sketch-neighbours",
    "sketch-lifetime", "sketch-size", "sketch-not-finite",
)  # fmt: skip
OF_FRAMES = (
    "no-frame", "too-large", "no-hello", "out-of-place", "unanswered", "answer", "round", "encoding", "size", "radius",
    "chunk-length", "early-end", "rate",
)  # fmt: skip
NO_OFFENCE = ("handshake", "slow", "stalled", "throttled", "calls", "certificate")  # perhaps only the network
REASONS = (*OF_SNAPSHOTS, *OF_SKETCHES, *OF_FRAMES, *NO_OFFENCE)
