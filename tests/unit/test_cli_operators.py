"""The command line of an operator on another machine: what `conlora init --operator` makes, and which commands take it."""

from pathlib import Path

import pytest
from tests.daemons import free_port
from tests.unit.conftest import Conlora

from conlora.net.identity import load_card, load_identity


@pytest.fixture
def mercy(conlora: Conlora, tmp_path: Path) -> Path:
    """A node's directory as `conlora init` makes it."""
    assert conlora("init", "mercy", "--name", "mercy")[0] == 0
    return tmp_path / "mercy"


def test_init_makes_an_operator(conlora: Conlora, tmp_path: Path) -> None:
    code, out, err = conlora("init", "ops", "--operator", "--name", "alice")
    assert (code, err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "ops").iterdir()) == ["alice.yaml", "conlora.yaml", "identity"]
    card = load_card(tmp_path / "ops" / "alice.yaml")
    assert (card.name, card.address, card.node_id) == (
        "alice",
        None,
        load_identity(tmp_path / "ops" / "identity").node_id,
    )
    assert f"id       {card.node_id}\n" in out
    assert "next     mail ops/alice.yaml to whoever keeps the node" in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--name", "al ice"], "conlora: ops/al ice.yaml: name: "),
        (["--name", "conlora"], "conlora: --name: conlora.yaml is the name of another file there; choose another one"),
        (["--advertise", "a:1"], "conlora: --operator: nobody dials an operator; leave out --advertise and --service"),
        (["--service"], "conlora: --operator: nobody dials an operator; leave out --advertise and --service"),
    ],
)
def test_init_leaves_nothing_of_an_operator_that_does_not_fit(
    conlora: Conlora, tmp_path: Path, options: list[str], said: str
) -> None:
    code, _, err = conlora("init", "ops", "--operator", *options)
    assert code == 2
    assert err.startswith(said)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_init_leaves_what_was_there_before(conlora: Conlora, tmp_path: Path) -> None:
    precious = tmp_path / "ops" / "identity" / "precious.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    assert conlora("init", "ops", "--operator", "--name", "al ice")[0] == 2
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [precious]
    assert precious.read_text() == "mine"
    precious.unlink()
    assert conlora("init", "ops", "--operator", "--name", "al ice")[0] == 2
    assert precious.parent.is_dir()
    assert conlora("init", "ops", "--operator", "--name", "alice")[0] == 0


def test_init_leaves_nothing_where_a_disk_is_full(
    conlora: Conlora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_text

    def full(path: Path, text: str) -> int:
        write(path, text[:10])
        if path.name == "conlora.yaml":
            raise OSError(28, "No space left on device")
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", full)
    code, _, err = conlora("init", "ops", "--operator", "--name", "alice")
    assert code == 2
    assert err == "conlora: ops: can't be written ([Errno 28] No space left on device); choose a writable directory\n"
    assert [path.name for path in tmp_path.rglob("*")] == ["ops"]


def test_init_never_overwrites_an_operator(conlora: Conlora, tmp_path: Path) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (tmp_path / "ops").rglob("*") if path.is_file()}

    assert conlora("init", "ops", "--operator", "--name", "alice")[0] == 0
    before = contents()
    assert conlora("init", "ops", "--operator", "--name", "alice")[0] == 2
    (tmp_path / "ops" / "conlora.yaml").unlink()
    (tmp_path / "ops" / "alice.yaml").unlink()
    code, _, err = conlora("init", "ops", "--operator", "--name", "alice")
    assert code == 2
    assert "holds an identity already" in err
    assert contents() == {path: content for path, content in before.items() if path.parent.name == "identity"}


@pytest.fixture
def ops(conlora: Conlora, mercy: Path, tmp_path: Path) -> Path:
    """An operator's directory, filled in for a node that does not run."""
    assert conlora("init", "ops", "--operator", "--name", "alice")[0] == 0
    path = tmp_path / "ops" / "conlora.yaml"
    path.write_text(
        path.read_text().replace("NODE:7444", f"127.0.0.1:{free_port()}").replace("NODE.yaml", "mercy.yaml")
    )
    (tmp_path / "ops" / "mercy.yaml").write_text(conlora("id", "-c", mercy)[1])
    return path.parent


@pytest.mark.parametrize(
    "command",
    ["status", "peers", "consensus", "pause", "resume", "checkpoint", "export /out", "reload", "drain", "leave", "stop",
     "top", "cert", "peers lift anna"],
)  # fmt: skip
def test_what_asks_a_daemon_takes_an_operators_file(conlora: Conlora, ops: Path, command: str) -> None:
    code, out, err = conlora(*command.split(), "-c", ops)
    assert (code, out) == (3, "")
    assert err.startswith("conlora: mercy at 127.0.0.1:")
    assert err.endswith(" can't be reached or went away (connection refused); is it running?\n")


@pytest.mark.parametrize("command", ["id", "check", "run", "merge out", "peers add x", "peers remove x", "cert rotate"])
def test_what_is_of_the_nodes_machine_does_not(
    conlora: Conlora, ops: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("CONLORA_CONFIG", str(ops))
    assert conlora(*command.split()) == (
        2,
        "",
        f"conlora: {ops}/conlora.yaml: is an operator's file, which names a node on another machine; give the node's own "
        "configuration, on its machine\n",
    )


def test_an_operators_file_with_mistakes(conlora: Conlora, ops: Path) -> None:
    path = ops / "conlora.yaml"
    good = path.read_text()
    path.write_text(good.replace("identity_dir", "identitydir"))
    assert "identitydir: unknown key; did you mean 'identity_dir'?" in conlora("status", "-c", path)[2]
    path.write_text(good.replace("address: 127.0.0.1:", "address: port-"))
    assert "is not an address; write host:port" in conlora("status", "-c", path)[2]
    path.write_text(good.replace("address: ", "# "))
    assert "address: missing; add this key" in conlora("status", "-c", path)[2]
    path.write_text(good.replace("card: ", "# "))
    assert "card: missing; add this key" in conlora("status", "-c", path)[2]
    path.write_text(good.replace("mercy.yaml", "gone.yaml"))
    assert "gone.yaml: no such file; give the file that" in conlora("status", "-c", path)[2]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("export adapter", "adapter: the node writes on its own machine, where a relative path has no place"),
        ("drain --export adapter", "adapter: the node writes on its own machine"),
        ("leave --export adapter", "adapter: the node writes on its own machine"),
        (
            "export /out --hub a/b",
            "--hub: sends what lies on this machine, and the node writes on its own; say this there",
        ),
    ],
)
def test_an_export_from_afar_is_refused_before_the_node_is_asked(
    conlora: Conlora, ops: Path, command: str, said: str
) -> None:
    code, _, err = conlora(*command.split(), "-c", ops)
    assert code == 2  # 3 would be that the node can't be reached
    assert err.startswith(f"conlora: {said}")
