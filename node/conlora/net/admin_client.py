"""The operator's side of the admin service, synchronous; used by the commands and the testbed."""

from pathlib import Path
from typing import Any, Self

import grpc

from conlora.errors import NodeSlow, NodeUnreachable, Refused
from conlora.net.conversion import from_message
from conlora.net.status import Changes, ConsensusView, NodeStatus, RoundRecord
from conlora.v1 import admin_pb2 as pb
from conlora.v1 import admin_pb2_grpc

QUICK_SECONDS = 5.0  # answered from memory
LONG_SECONDS = 60.0  # a history of tens of thousands of rounds, read from the disk of a machine that is busy
SLOW_SECONDS = 120.0  # waits for a step and a checkpoint
# A long history is larger than the 4 MB that gRPC takes by default; the socket's other end is one's own node.
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 256 * 1024 * 1024)]


class AdminClient:
    """One node. Calls raise NodeUnreachable where no daemon answers, NodeSlow where not in time, Refused where it declines."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=OPTIONS)
        self._stub = admin_pb2_grpc.AdminStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._channel.close()

    def status(self) -> NodeStatus:
        """The node as it is now."""
        return from_message(self._call(self._stub.Status, pb.StatusRequest(), QUICK_SECONDS), NodeStatus)

    def consensus(self) -> ConsensusView:
        """Edge errors of the last mix, and the federation as the node sees it."""
        return from_message(self._call(self._stub.Consensus, pb.ConsensusRequest(), QUICK_SECONDS), ConsensusView)

    def history(self, after_round: int = 0) -> list[RoundRecord]:
        """Figures of all rounds after the given one."""
        reply = self._call(self._stub.History, pb.HistoryRequest(after_round=after_round), LONG_SECONDS)
        return [from_message(record, RoundRecord) for record in reply.rounds]

    def pause(self) -> int:
        """Waits until the trainer stands still; returns the round."""
        return int(self._call(self._stub.Pause, pb.PauseRequest(), SLOW_SECONDS).round)

    def resume(self) -> int:
        """Goes on; returns the round."""
        return int(self._call(self._stub.Resume, pb.ResumeRequest(), SLOW_SECONDS).round)

    def checkpoint(self) -> tuple[Path, int]:
        """Waits until a checkpoint is written; returns its path and round."""
        reply = self._call(self._stub.Checkpoint, pb.CheckpointRequest(), SLOW_SECONDS)
        return Path(reply.path), reply.round

    def export(self, path: Path, overwrite: bool = False) -> int:
        """Has the node write a PEFT directory (the path has to be writable by the node's user); returns its round."""
        request = pb.ExportRequest(path=str(path.absolute()), overwrite=overwrite)
        return int(self._call(self._stub.Export, request, SLOW_SECONDS).round)

    def stop(self) -> tuple[Path | None, int]:
        """Waits until the last checkpoint is written, then the daemon leaves; returns path (if any) and round."""
        reply = self._call(self._stub.Stop, pb.StopRequest(), SLOW_SECONDS)
        return (Path(reply.checkpoint) if reply.checkpoint else None), reply.round

    def drain(self) -> tuple[Path | None, int]:
        """Waits, for as long as it takes, until the round is over and the peers are told; returns as `stop` does."""
        reply = self._call(self._stub.Drain, pb.DrainRequest(), None)
        return (Path(reply.checkpoint) if reply.checkpoint else None), reply.round

    def leave(self) -> tuple[Path | None, int]:
        """Waits likewise, then the daemon ends; returns as `stop` does."""
        reply = self._call(self._stub.Leave, pb.LeaveRequest(), None)
        return (Path(reply.checkpoint) if reply.checkpoint else None), reply.round

    def reload(self) -> Changes:
        """Has the node read its peers' cards and its configuration again; returns what differs now."""
        return from_message(self._call(self._stub.Reload, pb.ReloadRequest(), SLOW_SECONDS), Changes)

    def lift(self, peer: str) -> None:
        """Ends the quarantine of the peer of that name."""
        self._call(self._stub.Lift, pb.LiftRequest(peer=peer), QUICK_SECONDS)

    def read_identity(self) -> None:
        """Has the node tell its peers the next certificate."""
        self._call(self._stub.ReadIdentity, pb.ReadIdentityRequest(), QUICK_SECONDS)

    def _call(self, method: Any, request: Any, seconds: float | None) -> Any:
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
        try:
            return method(request, timeout=seconds)
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
            if code is grpc.StatusCode.FAILED_PRECONDITION:
                raise Refused(str(details)) from None
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise NodeSlow(f"the daemon at {self._socket} did not answer within {seconds:.0f} s") from None
            reason = details if code is not grpc.StatusCode.UNAVAILABLE else "it has died or is starting"
            raise NodeUnreachable(
                f"no daemon answers at {self._socket} ({reason}); start it with `conlora run`"
            ) from None
