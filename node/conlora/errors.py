"""Every error ConLoRA raises on purpose, and the exit code each ends a command with.

ConLoRAError                 1   something failed that is nobody's mistake
├── ConfigError              2   configuration, data, model or spec: the user can mend it
│   ├── CardError            2   a peer's identity card is damaged or does not match
│   └── Unavailable          9   an address, a port or a hub that the configuration names can't be used now; a later start may do
├── NodeUnreachable          3   no daemon answers on the admin socket, or the admin port
│   └── NodeSlow             3   one is there, and has not answered in time
├── CheckFailed              4   `conlora check` found something (it has printed what)
├── Refused                  5   the daemon answered, and declined (not now, or not like this)
├── TrainingFailed           6   the trainer can't go on: it died too often, or a round's deadline passed
│   └── RankLost             6   another process of the same program has ended
├── StateError               7   the state directory is damaged, full or not writable
├── UploadFailed             8   a hub did not take an export, which lies on this machine all the same
└── PeerError                -   about one peer; never ends the node
    ├── ProtocolError        -   the peer's frames break the protocol
    ├── Unanswered           -   nobody is there at the peer's address
    ├── Overdue              -   what the peer had begun, or had to take, was not done in time
    ├── Quarantined          -   the peer has committed too many offences
    ├── SettingsMismatch     -   the peer belongs to another federation, or to this one with other settings
    └── Rejected             -   what a peer sent can't be used
        ├── SnapshotRejected -   a snapshot is malformed
        ├── SketchRejected   -   a sketch is malformed, or not signed by its owner
        └── CertificateRejected - a certificate is not the peer's, not valid now, or not vouched for

A message is one sentence or two: what is wrong, where, and what to do.
"""


class ConLoRAError(Exception):
    """Base of all errors raised on purpose; `str()` is fit to print."""

    exit_code = 1


class ConfigError(ConLoRAError):
    """Configuration, data, model or spec that the user can mend."""

    exit_code = 2


class CardError(ConfigError):
    """An identity card is damaged, or its certificate does not match its node id."""


class Unavailable(ConfigError):
    """What the configuration names outside the node can't be used now. Perhaps it is wrong, perhaps a later start may do."""

    exit_code = 9


class NodeUnreachable(ConLoRAError):
    """No daemon answers on the admin socket, or the admin port."""

    exit_code = 3


class NodeSlow(NodeUnreachable):
    """A daemon has taken a command and not answered in time; it may still carry it out."""


class CheckFailed(ConLoRAError):
    """A preflight found at least one failure."""

    exit_code = 4


class Refused(ConLoRAError):
    """The daemon declined a command."""

    exit_code = 5


class TrainingFailed(ConLoRAError):
    """Training can't go on."""

    exit_code = 6


class RankLost(TrainingFailed):
    """Another process of the same program has ended."""


class StateError(ConLoRAError):
    """The state directory can't be read or written as needed."""

    exit_code = 7


class UploadFailed(ConLoRAError):
    """A hub did not take an export."""

    exit_code = 8


def error_of(exit_code: int) -> type[ConLoRAError]:
    """What has ended a trainer or a node that left this exit code, if whoever started it is to end likewise."""
    kinds = {kind.exit_code: kind for kind in (ConfigError, Unavailable, StateError)}
    return kinds.get(exit_code, TrainingFailed)


class PeerError(ConLoRAError):
    """One peer misbehaved or does not fit; the node goes on."""


class ProtocolError(PeerError):
    """A peer's frames break the protocol; `reason` is its short name for counts and tests."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class Unanswered(PeerError):
    """Nobody is there at a peer's address; that may change by itself."""


class Overdue(PeerError):
    """A peer has not done in time what it had begun, or had to take; `reason` as above. Perhaps its network is to blame."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class Quarantined(PeerError):
    """A peer has committed too many offences; nothing more is accepted from it."""


class SettingsMismatch(PeerError):
    """A peer's federation settings differ from ours."""


class Rejected(PeerError):
    """What a peer sent can't be used; `reason` is its short name for metrics and tests."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class SnapshotRejected(Rejected):
    """A peer's snapshot is malformed."""


class SketchRejected(Rejected):
    """A sketch that a peer has passed on is malformed, or not signed by its owner."""


class CertificateRejected(Rejected):
    """A certificate is not the peer's, not valid now, or not vouched for by the one that is known."""
