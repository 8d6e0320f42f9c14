"""The command line in this process; an identity and its card."""

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from conlora.cli import main as cli
from conlora.net.identity import Identity, Peer, create_identity

Conlora = Callable[..., tuple[int, str, str]]


@pytest.fixture
def conlora(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Conlora]:
    """Runs a command in this process, in an empty directory; returns exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("CONLORA_CONFIG", raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["conlora", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output = capsys.readouterr()
        assert "Traceback" not in output.out + output.err
        code = caught.value.code or 0
        assert isinstance(code, int)
        return code, output.out, output.err

    yield run
    structlog.reset_defaults()  # `conlora run` has set up logging to this test's standard error


@pytest.fixture
def mercy(tmp_path: Path) -> Identity:
    """In the directory `mercy`."""
    return create_identity(tmp_path / "mercy")


@pytest.fixture
def card(mercy: Identity) -> Peer:
    """As her partners have it."""
    return Peer("mercy", mercy.node_id, None, mercy.certificate)


@pytest.fixture
def collected() -> Iterator[None]:
    """What a test leaves to the garbage collector is gone before the next one, with its warnings: pandas does not close a CSV
    file of which a stream has taken only the first row.
    """
    yield
    gc.collect()
