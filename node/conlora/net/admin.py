"""The admin service: what operators ask, and the node's Unix socket for it, with health and reflection beside it."""

import asyncio
import os
import shutil
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from conlora.errors import ConfigError, ConLoRAError, Refused
from conlora.net.conversion import to_message
from conlora.net.status import Changes, ConsensusView, NodeStatus, RoundRecord
from conlora.v1 import admin_pb2 as pb
from conlora.v1 import admin_pb2_grpc

LONGEST_SOCKET_PATH = 100  # the kernel's limit for a Unix socket's address is 108 bytes
SERVICE = pb.DESCRIPTOR.services_by_name["Admin"].full_name

T = TypeVar("T")


class Operations(Protocol):
    """What the admin service needs of the node. Each may raise ConLoRAError; the operator gets its sentence."""

    def status(self) -> NodeStatus:
        """The node as it is now."""
        ...

    def consensus(self) -> ConsensusView:
        """Edge errors of the last mix, and the federation as this node sees it."""
        ...

    def history(self, after_round: int) -> list[RoundRecord]:
        """All later rounds. Is called in a thread, and not again until it has returned."""
        ...

    async def pause(self) -> int:
        """Stands still; returns the round."""
        ...

    async def resume(self) -> int:
        """Goes on; returns the round."""
        ...

    async def checkpoint(self) -> tuple[Path, int]:
        """Writes a checkpoint; returns its path and round."""
        ...

    async def export(self, target: Path, overwrite: bool) -> int:
        """Writes a PEFT directory; returns its round."""
        ...

    async def stop(self) -> tuple[Path | None, int]:
        """Ends the node; returns the last checkpoint, if any, and the round."""
        ...

    async def drain(self) -> tuple[Path | None, int]:
        """Leaves the federation after this round, until `resume`; returns as `stop` does."""
        ...

    async def leave(self) -> tuple[Path | None, int]:
        """Leaves the federation after this round, and ends the node; returns as `stop` does."""
        ...

    async def reload(self) -> Changes:
        """Reads cards and configuration again; returns what differs now."""
        ...

    async def lift(self, peer: str) -> None:
        """Ends the quarantine of the peer of that name."""

    async def read_identity(self) -> None:
        """Tells peers the next certificate that lies beside the identity."""
        ...


class AdminService(admin_pb2_grpc.AdminServicer):
    """Serves Operations on a Unix socket that only the node's user may open, and a group if it has one."""

    def __init__(self, operations: Operations, path: Path, group: str | None = None) -> None:
        self._node = operations
        self._path = path
        self._group = group
        self._service = grpc.aio.server()
        self._health = HealthServicer()
        self._reader = ThreadPoolExecutor(1, "history")  # one at a time, whoever asks on whatever port

    async def start(self) -> None:
        """Opens the socket. Raises ConfigError for a path that is too long or taken, and a group that can't have it."""
        if len(os.fsencode(self._path)) > LONGEST_SOCKET_PATH:
            raise ConfigError(
                f"admin_socket: {self._path} is longer than the {LONGEST_SOCKET_PATH} bytes that a Unix socket's path may have; "
                "set admin_socket to a shorter one"
            )
        admin_pb2_grpc.add_AdminServicer_to_server(self, self._service)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._service)
        reflection.enable_server_reflection(
            [SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME],
            self._service,
        )
        self._clear_path()
        previous = os.umask(0o177)  # the socket is born with mode 0600
        try:
            self._service.add_insecure_port(f"unix:{self._path}")
        except RuntimeError as error:
            raise ConfigError(
                f"admin_socket: {self._path} can't be opened; choose a path in a writable directory"
            ) from error
        finally:
            os.umask(previous)
        self._open_to_group()
        await self._service.start()
        await self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)

    def _open_to_group(self) -> None:
        if self._group is None:
            return
        try:
            shutil.chown(self._path, group=self._group)
            self._path.chmod(0o660)
        except (LookupError, OSError) as error:
            raise ConfigError(
                f"admin_group: the admin socket can't be given to {self._group!r} ({error}); choose a group of the node's user"
            ) from error

    def _clear_path(self) -> None:
        """Removes the socket that a killed daemon left, and nothing else."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._path.exists() and not self._path.is_socket():
                raise ConfigError(f"admin_socket: {self._path} is there already, and no socket; choose another path")
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(
                f"admin_socket: {self._path} can't be made ({error}); choose a path in a writable directory"
            ) from error

    async def close(self) -> None:
        """Lets calls under way finish, and removes the socket."""
        await self._health.enter_graceful_shutdown()
        await self._service.stop(grace=1.0)
        self._reader.shutdown(wait=False, cancel_futures=True)
        self._path.unlink(missing_ok=True)

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusReply:
        """See admin.proto."""
        return to_message(self._node.status(), pb.StatusReply())

    async def Consensus(self, request: pb.ConsensusRequest, context: Any) -> pb.ConsensusReply:
        """See admin.proto."""
        return to_message(self._node.consensus(), pb.ConsensusReply())

    async def History(self, request: pb.HistoryRequest, context: Any) -> pb.HistoryReply:
        """See admin.proto. Links would be silent for as long as a long one takes, hence the thread."""
        reading = asyncio.get_running_loop().run_in_executor(self._reader, self._history, request.after_round)
        return await _answered(reading, context)

    def _history(self, after_round: int) -> pb.HistoryReply:
        records = self._node.history(after_round)
        return pb.HistoryReply(rounds=[to_message(record, pb.RoundRecord()) for record in records])

    async def Pause(self, request: pb.PauseRequest, context: Any) -> pb.PauseReply:
        """See admin.proto."""
        return pb.PauseReply(round=await _answered(self._node.pause(), context))

    async def Resume(self, request: pb.ResumeRequest, context: Any) -> pb.ResumeReply:
        """See admin.proto."""
        return pb.ResumeReply(round=await _answered(self._node.resume(), context))

    async def Checkpoint(self, request: pb.CheckpointRequest, context: Any) -> pb.CheckpointReply:
        """See admin.proto."""
        path, round_ = await _answered(self._node.checkpoint(), context)
        return pb.CheckpointReply(path=str(path), round=round_)

    async def Export(self, request: pb.ExportRequest, context: Any) -> pb.ExportReply:
        """See admin.proto."""
        round_ = await _answered(self._export(Path(request.path), request.overwrite), context)
        return pb.ExportReply(path=request.path, round=round_)

    async def _export(self, target: Path, overwrite: bool) -> int:
        if not target.is_absolute():
            raise Refused(f"nothing was exported: {target} is not absolute; give a whole path on the node's machine")
        return await self._node.export(target, overwrite)

    async def Stop(self, request: pb.StopRequest, context: Any) -> pb.StopReply:
        """See admin.proto."""
        path, round_ = await _answered(self._node.stop(), context)
        return pb.StopReply(checkpoint=str(path or ""), round=round_)

    async def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainReply:
        """See admin.proto."""
        path, round_ = await _answered(self._node.drain(), context)
        return pb.DrainReply(checkpoint=str(path or ""), round=round_)

    async def Leave(self, request: pb.LeaveRequest, context: Any) -> pb.LeaveReply:
        """See admin.proto."""
        path, round_ = await _answered(self._node.leave(), context)
        return pb.LeaveReply(checkpoint=str(path or ""), round=round_)

    async def Reload(self, request: pb.ReloadRequest, context: Any) -> pb.ReloadReply:
        """See admin.proto."""
        return to_message(await _answered(self._node.reload(), context), pb.ReloadReply())

    async def Lift(self, request: pb.LiftRequest, context: Any) -> pb.LiftReply:
        """See admin.proto."""
        await _answered(self._node.lift(request.peer), context)
        return pb.LiftReply()

    async def ReadIdentity(self, request: pb.ReadIdentityRequest, context: Any) -> pb.ReadIdentityReply:
        """See admin.proto."""
        await _answered(self._node.read_identity(), context)
        return pb.ReadIdentityReply()


async def _answered(operation: Awaitable[T], context: Any) -> T:
    """The operation's result; its sentence as FAILED_PRECONDITION where it declines."""
    try:
        return await operation
    except ConLoRAError as error:
        context.set_details(str(error))  # to be read by who logs it; abort keeps it to itself
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        raise  # abort raises; this tells the type checker
