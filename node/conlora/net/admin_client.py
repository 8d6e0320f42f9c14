"""The operator's side of the admin service, synchronous; used by the commands and the testbed."""

from pathlib import Path
from typing import Any, Self

import grpc

from conlora.errors import Refused
from conlora.net.conversion import from_message
from conlora.net.status import Changes, ConsensusView, NodeStatus, RoundRecord
from conlora.net.ways import SocketWay, Way
from conlora.v1 import admin_pb2 as pb
from conlora.v1 import admin_pb2_grpc

QUICK_SECONDS = 5.0  # answered from memory
LONG_SECONDS = 60.0  # a history of tens of thousands of rounds, read from the disk of a machine that is busy
SLOW_SECONDS = 120.0  # waits for a step and a checkpoint


class AdminClient:
    """One node. Calls raise NodeUnreachable where no daemon answers, NodeSlow where not in time, Refused where it declines."""

    def __init__(self, way: Way | Path) -> None:
        """way: to the node; a path is that of its Unix socket."""
        self._way: Way = SocketWay(way) if isinstance(way, Path) else way
        self._connect()

    def _connect(self) -> None:
        self._channel = self._way.open()
        self._stub = admin_pb2_grpc.AdminStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._channel.close()

    def status(self) -> NodeStatus:
        """The node as it is now."""
        return from_message(self._call("Status", pb.StatusRequest(), QUICK_SECONDS), NodeStatus)

    def consensus(self) -> ConsensusView:
        """Edge errors of the last mix, and the federation as the node sees it."""
        return from_message(self._call("Consensus", pb.ConsensusRequest(), QUICK_SECONDS), ConsensusView)

    def history(self, after_round: int = 0) -> list[RoundRecord]:
        """Figures of all rounds after the given one."""
        reply = self._call("History", pb.HistoryRequest(after_round=after_round), LONG_SECONDS)
        return [from_message(record, RoundRecord) for record in reply.rounds]

    def pause(self) -> int:
        """Waits until the trainer stands still; returns the round."""
        return int(self._call("Pause", pb.PauseRequest(), SLOW_SECONDS).round)

    def resume(self) -> int:
        """Goes on; returns the round."""
        return int(self._call("Resume", pb.ResumeRequest(), SLOW_SECONDS).round)

    def checkpoint(self) -> tuple[Path, int]:
        """Waits until a checkpoint is written; returns its path and round."""
        reply = self._call("Checkpoint", pb.CheckpointRequest(), SLOW_SECONDS)
        return Path(reply.path), reply.round

    def export(self, path: Path, overwrite: bool = False) -> int:
        """Has the node write a PEFT directory (the path has to be writable by the node's user); returns its round.

        Raises ConfigError, as `path_there` does.
        """
        request = pb.ExportRequest(path=str(self.path_there(path)), overwrite=overwrite)
        return int(self._call("Export", request, SLOW_SECONDS).round)

    def path_there(self, path: Path) -> Path:
        """Where the node would write this. Raises ConfigError for a relative path where that is another machine."""
        return self._way.path_there(path)

    def stop(self) -> tuple[Path | None, int]:
        """Waits until the last checkpoint is written, then the daemon leaves; returns path (if any) and round."""
        reply = self._call("Stop", pb.StopRequest(), SLOW_SECONDS)
        return (Path(reply.checkpoint) if reply.checkpoint else None), reply.round

    def drain(self) -> tuple[Path | None, int]:
        """Waits, for as long as it takes, until the round is over and the peers are told; returns as `stop` does."""
        reply = self._call("Drain", pb.DrainRequest(), None)
        return (Path(reply.checkpoint) if reply.checkpoint else None), reply.round

    def leave(self) -> tuple[Path | None, int]:
        """Waits likewise, then the daemon ends; returns as `stop` does."""
        reply = self._call("Leave", pb.LeaveRequest(), None)
        return (Path(reply.checkpoint) if reply.checkpoint else None), reply.round

    def reload(self) -> Changes:
        """Has the node read its peers' cards and its configuration again; returns what differs now."""
        return from_message(self._call("Reload", pb.ReloadRequest(), SLOW_SECONDS), Changes)

    def lift(self, peer: str) -> None:
        """Ends the quarantine of the peer of that name."""
        self._call("Lift", pb.LiftRequest(peer=peer), QUICK_SECONDS)

    def read_identity(self) -> None:
        """Has the node tell its peers the next certificate."""
        self._call("ReadIdentity", pb.ReadIdentityRequest(), QUICK_SECONDS)

    def _call(self, method: str, request: Any, seconds: float | None) -> Any:
        self._way.check()
        try:
            return getattr(self._stub, method)(request, timeout=seconds)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                raise Refused(_legible(error.details() or "")) from None
            if not self._way.finds_out(error):
                raise self._way.explain(error, seconds) from None
        self._channel.close()
        self._connect()
        return self._call(method, request, seconds)


def _legible(sentences: str) -> str:
    """What a node has worded, with nothing in it that moves the operator's cursor."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in sentences)
