"""A real daemon beside a peer that sends what can't be used, and as much as it can."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.daemons import Daemon, Daemons, wait_until

from conlora.core.conduct import OFFENCES
from conlora.net.credentials import dialling_credentials
from conlora.net.identity import Identity, Peer, create_identity
from conlora.net.wire import MAX_FRAME_BYTES, Frame, Goodbye, chunk, snapshot_end

METHOD = "/conlora.v1.Peer/Link"
MIB = 1 << 20
SECONDS = 60.0

pytestmark = pytest.mark.usefixtures("forks")


class Mallory:
    """A configured peer's key in other hands; it dials."""

    def __init__(self, victim: Daemon, directory: Path) -> None:
        self._identity: Identity = create_identity(directory / "mallory")
        (victim.directory / "peers" / "mallory.yaml").write_text(self._identity.card("mallory", None))
        self._victim = Peer("a", victim.identity.node_id, victim.config["advertise"], victim.identity.certificate)

    @contextlib.contextmanager
    def call(self, messages: Iterator[bytes], **options: Any) -> Iterator[Any]:
        """Says the messages as fast as they are taken; iterates over what it hears."""
        credentials, channel_options = dialling_credentials(self._identity, self._victim)
        limitless = [option for option in channel_options if option[0] != "grpc.max_send_message_length"]
        with grpc.secure_channel(self._victim.address, credentials, limitless, **options) as channel:  # type: ignore[arg-type]
            yield channel.stream_stream(METHOD)(messages, timeout=SECONDS)

    def hello(self) -> Frame:
        """The victim's own, which fits as none does."""
        with self.call(iter(())) as heard:
            hello = Frame.FromString(next(heard))
        hello.hello.instance = b"mallory"
        return hello

    def echo(self, hello: Frame) -> Goodbye:
        """Sends back each snapshot with another digest, until the victim says good-bye; returns that."""
        said: list[bytes] = [hello.SerializeToString()]
        done = False

        def speak() -> Iterator[bytes]:
            while not done:
                if said:
                    yield said.pop(0)
                else:
                    time.sleep(0.01)

        try:
            with self.call(speak()) as heard:
                return self._echo(heard, said)
        finally:
            done = True

    def _echo(self, heard: Iterator[bytes], said: list[bytes]) -> Goodbye:
        id_ = 0  # of the snapshot that is arriving; sketches have chunks, too
        for message in heard:
            frame = Frame.FromString(message)
            if frame.HasField("goodbye"):
                return frame.goodbye
            id_ = frame.snapshot.id or id_
            if frame.HasField("snapshot_end"):
                said.append(snapshot_end(bytes(16)).SerializeToString())
                said.append(Frame(taken={"id": id_, "outcome": 1}).SerializeToString())
                id_ = 0
            elif id_ and not frame.HasField("taken"):
                said.append(message)
        raise AssertionError("no good-bye")


def conlora(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "conlora", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})


def resident(pid: int, what: str = "VmRSS") -> int:
    """Bytes."""
    found = re.search(rf"^{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert found
    return 1024 * int(found[1])


def test_a_peer_that_offends_is_quarantined_until_somebody_lifts_that(daemons: Daemons, tmp_path: Path) -> None:
    a, b = daemons.pair({"rounds": 1_000_000, "slowdown": 5})
    mallory = Mallory(a, tmp_path)
    a.start()
    b.start()
    a.wait_for(lambda s: s.peers[0].weight == 0.5, "a mixes with b")
    hello = mallory.hello()
    farewell = mallory.echo(hello)
    assert farewell.reason == Goodbye.REASON_QUARANTINED
    sentence = f"mallory has sent too much that can't be used (digest {OFFENCES})"
    assert farewell.detail == f"quarantined: {sentence}"
    status = a.wait_for(lambda s: s.peers[1].link == "quarantined", "quarantined")
    assert status.peers[1].refused == {"digest": OFFENCES}
    assert status.peers[1].quarantine == f"digest {OFFENCES}"
    assert status.peers[1].snapshot_round is None
    shown = conlora("peers", "-c", a.config_path).stdout
    assert re.search(
        r"mallory +quarantined .*too many offences \(digest 5\); `conlora peers lift mallory` ends", shown
    ), shown

    a.kill()
    a.start()
    a.wait_for(lambda s: s.peers[0].weight == 0.5, "its weights are those of two nodes")
    with mallory.call(iter([hello.SerializeToString()])) as heard, pytest.raises(grpc.RpcError) as caught:
        next(heard)
    assert caught.value.details() == "quarantined"
    assert a.status().peers[1].link == "quarantined"  # type: ignore[union-attr]

    lifted = conlora("peers", "lift", "mallory", "-c", a.config_path)
    assert (lifted.returncode, lifted.stdout) == (0, "lifted the quarantine of mallory\n"), lifted.stderr
    again = conlora("peers", "lift", "mallory", "-c", a.config_path)
    assert (again.returncode, again.stderr) == (
        5, "conlora: nothing was lifted: mallory is not quarantined; `conlora peers` says who is\n",
    )  # fmt: skip
    mallory.hello()
    assert a.status().peers[1].link == "down"  # type: ignore[union-attr]


def test_floods_take_no_more_memory_than_the_formula_says(daemons: Daemons, tmp_path: Path) -> None:
    """That of docs/reference/protocol.md. Each flood ends a call; together they stay below a quarantine."""
    a = daemons.make("a")
    mallory = Mallory(a, tmp_path)
    a.start("--paused")
    a.wait_for(lambda s: s.state == "paused", "ready")
    hello = mallory.hello().SerializeToString()
    assert a.process is not None
    pid, before = a.process.pid, resident(a.process.pid)
    zeros = Frame(chunk=bytes(64 * MIB)).SerializeToString()
    floods: list[tuple[Iterator[bytes], dict[str, Any]]] = [
        (iter([hello, *[chunk(bytes(MIB)).message] * 500]), {}),
        (iter([hello, *[bytes(MAX_FRAME_BYTES)] * 500]), {}),
        (iter([hello, *[Frame(heartbeat={}).SerializeToString()] * 50_000]), {}),
        (iter([hello, zeros, zeros]), {"compression": grpc.Compression.Gzip}),
        (iter([hello, zeros, zeros]), {}),
    ]
    for messages, options in floods:
        with mallory.call(messages, **options) as heard, contextlib.suppress(grpc.RpcError):
            for _ in heard:
                pass
        wait_until(lambda: a.status().peers[0].link != "up", "the link ended")  # type: ignore[union-attr]
    frames = 2 * MAX_FRAME_BYTES + 6 * 256 * 1024
    grpc_own = 64 * MIB
    assert resident(pid, "VmHWM") - before < frames + grpc_own
    assert a.status().peers[0].refused.keys() <= {"out-of-place", "no-frame", "rate", "too-large"}  # type: ignore[union-attr]
