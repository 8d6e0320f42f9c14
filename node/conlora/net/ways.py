"""Ways to a node's admin service. The usual one: the Unix socket of its machine."""

from pathlib import Path
from typing import Protocol

import grpc

from conlora.errors import ConLoRAError, NodeSlow, NodeUnreachable

# A long history is larger than the 4 MB that gRPC takes by default; at the other end is a node that the operator trusts.
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 256 * 1024 * 1024)]

NOT_ADMITTED = "not admitted"  # all that somebody else than an operator hears
KEEPALIVE_MS = 10_000


class Way(Protocol):
    """How one node's admin service is reached."""

    def open(self) -> grpc.Channel:
        """A new channel; connects with the first call."""
        ...

    def check(self) -> None:
        """Raises NodeUnreachable where there is no use in calling."""
        ...

    def path_there(self, path: Path) -> Path:
        """What the node has to be told to write to this path of the operator's. Raises ConfigError."""
        ...

    def finds_out(self, error: grpc.RpcError) -> bool:
        """Whether a call that has failed may succeed now, on a new channel."""
        ...

    def explain(self, error: grpc.RpcError, seconds: float | None) -> ConLoRAError:
        """A sentence for why a call has failed. seconds: how long it could take."""
        ...


class SocketWay:
    """The node's Unix socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def open(self) -> grpc.Channel:
        """See `Way`."""
        return grpc.insecure_channel(f"unix:{self._socket}", options=OPTIONS)

    def check(self) -> None:
        """See `Way`."""
        try:
            there = self._socket.exists()
        except PermissionError as error:
            raise NodeUnreachable(
                f"the admin socket {self._socket} can't be reached ({error.strerror}); ask as the node's user, or as a member of "
                "its admin_group"
            ) from None
        if not there:
            raise NodeUnreachable(
                f"no daemon runs for this configuration ({self._socket} is not there); start it with `conlora run`"
            )

    def path_there(self, path: Path) -> Path:
        """See `Way`."""
        return path.absolute()

    def finds_out(self, error: grpc.RpcError) -> bool:
        """See `Way`."""
        return False

    def explain(self, error: grpc.RpcError, seconds: float | None) -> ConLoRAError:
        """See `Way`."""
        code = error.code()
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return NodeSlow(f"the daemon at {self._socket} did not answer within {seconds:.0f} s")
        reason = error.details() if code is not grpc.StatusCode.UNAVAILABLE else "it has died or is starting"
        return NodeUnreachable(f"no daemon answers at {self._socket} ({reason}); start it with `conlora run`")
