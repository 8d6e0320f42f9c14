"""The command line: what each command prints and leaves behind, its exit code, never a traceback, and no torch."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import yaml
from cryptography import x509
from tests.authorities import Authority
from tests.unit.conftest import Conlora

from conlora.config import load_basics
from conlora.errors import NodeSlow, NodeUnreachable, Refused
from conlora.net.admin_client import AdminClient
from conlora.net.authorities import load_chain
from conlora.net.identity import create_identity, load_identity

HEAVY = ("torch", "transformers", "peft", "datasets", "accelerate")


@pytest.fixture
def mercy(conlora: Conlora, tmp_path: Path) -> Path:
    """A node's directory as `conlora init` makes it."""
    code, _, _ = conlora("init", "mercy", "--name", "mercy", "--advertise", "mercy.example:7443")
    assert code == 0
    return tmp_path / "mercy"


@pytest.fixture
def ready(mercy: Path) -> Path:
    """Its configuration, filled in."""
    path = mercy / "conlora.yaml"
    (mercy / "data.csv").write_text("text,label\n")
    (mercy / "model").mkdir()
    path.write_text(path.read_text().replace("PATH-OR-HUB-ID", "./model"))
    return path


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A partner's card, as mailed."""
    path = tmp_path / "st-anna.txt"
    path.write_text(create_identity(tmp_path / "anna").card("st-anna", "anna.example:7443"))
    return path


def test_help_names_every_command(conlora: Conlora) -> None:
    code, out, _ = conlora("--help")
    assert code == 0
    commands = [
        "init",
        "id",
        "check",
        "run",
        "status",
        "pause",
        "resume",
        "checkpoint",
        "export",
        "drain",
        "leave",
        "stop",
        "peers",
        "consensus",
        "top",
    ]
    missing = [word for word in [*commands, "testbed", "Exit codes"] if word not in out]
    assert not missing


def test_version(conlora: Conlora) -> None:
    assert conlora("--version")[1].startswith("conlora 0.")


def test_a_usage_error_is_2(conlora: Conlora) -> None:
    code, _, err = conlora("fly")
    assert code == 2
    assert "No such command 'fly'" in err


def test_init_makes_a_node(mercy: Path) -> None:
    assert sorted(path.name for path in mercy.iterdir()) == ["conlora.yaml", "identity", "peers"]
    written = yaml.safe_load((mercy / "conlora.yaml").read_text())
    assert written["name"] == "mercy"
    assert written["advertise"] == "mercy.example:7443"
    load_identity(mercy / "identity")


def test_init_for_the_service(conlora: Conlora, tmp_path: Path) -> None:
    code, _, _ = conlora("init", "etc/mercy", "--name", "mercy", "--service")
    assert code == 0
    node = load_basics(tmp_path / "etc" / "mercy" / "conlora.yaml")
    assert (node.state_dir, node.admin_path) == (Path("/var/lib/conlora/mercy"), Path("/run/conlora/mercy/admin.sock"))
    assert node.admin_group == "conlora"


def test_a_service_reads_its_node_whatever_roots_umask(conlora: Conlora, tmp_path: Path, card: Path) -> None:
    before = os.umask(0o077)
    try:
        assert conlora("init", "mercy", "--name", "mercy", "--service")[0] == 0
        assert conlora("peers", "add", card, "-c", "mercy")[0] == 0
    finally:
        os.umask(before)
    places = {"": 0o755, "peers": 0o755, "conlora.yaml": 0o644, "peers/st-anna.yaml": 0o644, "identity": 0o700}
    assert {place: (tmp_path / "mercy" / place).stat().st_mode & 0o777 for place in places} == places


def test_init_never_overwrites(conlora: Conlora, mercy: Path) -> None:
    before = {path: path.read_bytes() for path in mercy.rglob("*") if path.is_file()}
    code, _, err = conlora("init", mercy, "--name", "other")
    assert code == 2
    assert "exists already; choose another directory" in err
    (mercy / "conlora.yaml").unlink()
    code, _, err = conlora("init", mercy, "--name", "other")  # a lost configuration is no reason to lose the identity
    assert code == 2
    assert "holds an identity already" in err
    kept = {path: path.read_bytes() for path in mercy.rglob("*") if path.is_file()}
    assert kept == {path: content for path, content in before.items() if path.parent != mercy}


def test_init_needs_a_directory(conlora: Conlora, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = conlora("init", "file/mercy", "--name", "mercy")
    assert code == 2
    assert err.startswith("conlora: file/mercy: can't be written ([Errno 20] Not a directory: ")
    assert err.endswith("); choose a writable directory\n")


@pytest.mark.parametrize(
    ("option", "value"), [("--name", "a/b"), ("--name", "x: y"), ("--advertise", "nowhere"), ("--listen", "7443")]
)
def test_init_refuses_what_does_not_fit(conlora: Conlora, tmp_path: Path, option: str, value: str) -> None:
    code, _, err = conlora("init", "new", option, value)
    assert code == 2
    assert err.startswith("conlora: new/conlora.yaml: ")
    assert not (tmp_path / "new" / "conlora.yaml").exists()
    assert not (tmp_path / "new" / "identity").exists()


def test_what_init_writes_is_valid_once_filled_in(conlora: Conlora, ready: Path) -> None:
    code, _, err = conlora("export", "out", "-c", ready)
    assert code == 7  # so the configuration was read
    assert "no checkpoint yet" in err


def test_init_asks_for_what_is_missing(conlora: Conlora, mercy: Path) -> None:
    code, _, err = conlora("run", mercy)
    assert code == 2
    assert "data.csv does not exist" in err
    assert conlora("status", "-c", mercy)[0] == 3  # asking a daemon needs its socket's place, and no more


def test_id_prints_the_card_and_nothing_else(conlora: Conlora, mercy: Path, tmp_path: Path) -> None:
    code, out, err = conlora("id", "-c", mercy / "conlora.yaml")
    assert (code, err) == (0, "")
    body = yaml.safe_load(out)
    assert body["id"] == load_identity(mercy / "identity").node_id
    assert body["address"] == "mercy.example:7443"
    assert "PRIVATE" not in out


def test_id_without_a_configuration(conlora: Conlora) -> None:
    code, _, err = conlora("id", "-c", "gone.yaml")
    assert (code, err) == (2, "conlora: gone.yaml: no such file; `conlora init DIR` writes a first configuration\n")


def test_peers_add_and_remove(conlora: Conlora, mercy: Path, card: Path) -> None:
    code, out, _ = conlora("peers", "add", card, "-c", mercy)
    assert code == 0
    assert out.startswith("added st-anna: ")
    assert "anna.example:7443" in out
    assert (mercy / "peers" / "st-anna.yaml").read_text() == card.read_text()
    code, _, err = conlora("peers", "add", card, "-c", mercy)
    there = mercy / "peers" / "st-anna.yaml"
    sentence = f"{there}: a peer of that name is there already; `conlora peers remove st-anna` first"
    assert (code, err) == (2, f"conlora: {sentence}\n")
    assert conlora("peers", "remove", "st-anna", "-c", mercy)[0] == 0
    assert list((mercy / "peers").iterdir()) == []
    code, _, err = conlora("peers", "remove", "st-anna", "-c", mercy)
    assert code == 2
    assert err == f"conlora: {there}: no such peer; `conlora peers` lists them\n"


def test_peers_remove_stays_in_its_folder(conlora: Conlora, mercy: Path) -> None:
    assert conlora("peers", "remove", "../conlora", "-c", mercy)[0] == 2
    assert (mercy / "conlora.yaml").exists()


def test_peers_add_refuses_a_bad_card_and_keeps_nothing(conlora: Conlora, mercy: Path, card: Path) -> None:
    own = card.with_name("own.yaml")
    own.write_text(conlora("id", "-c", mercy)[1].replace("name: mercy", "name: myself"))
    assert "is this node's own card" in conlora("peers", "add", own, "-c", mercy)[2]
    torn = card.with_name("torn.yaml")
    torn.write_text(card.read_text().replace("id: ", "id: A"))
    code, _, err = conlora("peers", "add", torn, "-c", mercy)
    assert code == 2
    assert "is not the id of this certificate" in err
    assert list((mercy / "peers").iterdir()) == []


def test_peers_add_refuses_a_second_card_under_another_name(conlora: Conlora, mercy: Path, card: Path) -> None:
    conlora("peers", "add", card, "-c", mercy)
    card.write_text(card.read_text().replace("name: st-anna", "name: another"))
    code, _, err = conlora("peers", "add", card, "-c", mercy)
    assert code == 2
    assert "has a second card" in err
    assert [path.name for path in (mercy / "peers").iterdir()] == ["st-anna.yaml"]


@pytest.mark.parametrize(
    "command", ["status", "pause", "resume", "checkpoint", "drain", "leave", "stop", "reload", "peers"]
)
def test_without_a_daemon_it_is_3(conlora: Conlora, ready: Path, command: str) -> None:
    code, out, err = conlora(command, "-c", ready)
    assert (code, out) == (3, "")
    socket = ready.parent / "state" / "admin.sock"
    assert err == (
        f"conlora: no daemon runs for this configuration ({socket} is not there); start it with `conlora run`\n"
    )


@pytest.mark.parametrize("command", [["status"], ["run"], ["check"], ["export", "out"], ["id"], ["peers"]])
def test_a_bad_configuration_is_2(conlora: Conlora, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "conlora.yaml").write_text("name: [")
    code, out, err = conlora(*command)
    assert (code, out) == (2, "")
    assert err.startswith("conlora: conlora.yaml: not valid YAML in line 1")
    assert err.count("\n") == 1


def test_the_environment_names_the_configuration(
    conlora: Conlora, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONLORA_CONFIG", str(ready))
    assert conlora("status")[0] == 3


def test_export_without_a_checkpoint_is_7(conlora: Conlora, ready: Path, tmp_path: Path) -> None:
    code, out, err = conlora("export", "adapter", "-c", ready)
    assert (code, out) == (7, "")
    assert "no checkpoint yet; train first with `conlora run`" in err
    assert not (tmp_path / "adapter").exists()


def test_merge_without_a_checkpoint_is_7_and_onto_something_too(conlora: Conlora, ready: Path, tmp_path: Path) -> None:
    code, out, err = conlora("merge", tmp_path / "model", "-c", ready)
    assert (code, out) == (7, "")
    assert "no checkpoint yet; train first with `conlora run`" in err
    code, _, err = conlora("merge", ready, "--adapter", tmp_path, "-c", ready)
    assert code == 7
    assert "exists already; choose another directory" in err


def heavy_imports(code: str, *arguments: object, of: tuple[str, ...] = HEAVY) -> tuple[list[str], int]:
    """What of the training stack a fresh Python has loaded after running `code`, and the exit code it caught."""
    script = f"""
import json, sys
sys.argv = ["conlora", *sys.argv[1:]]
ended = 0
try:
    {code}
except SystemExit as error:
    ended = error.code or 0
print(json.dumps([[name for name in {of!r} if name in sys.modules], ended]), file=sys.stderr)
"""
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    loaded, ended = json.loads(done.stderr.splitlines()[-1])
    return loaded, ended


COMMAND = "from conlora.cli.main import main; main()"


def test_no_admin_command_loads_the_training_stack(ready: Path) -> None:
    assert heavy_imports(COMMAND, "--help") == ([], 0)
    assert heavy_imports(COMMAND, "status", "-c", ready) == ([], 3)
    assert heavy_imports(COMMAND, "export", "out", "-c", ready) == ([], 7)
    for command in ("status", "peers", "consensus"):
        assert heavy_imports(COMMAND, command, "-c", ready, of=("numpy", "networkx", "matplotlib")) == ([], 3)


def test_the_daemon_does_not_load_the_training_stack() -> None:
    assert heavy_imports("import conlora.daemon.node") == ([], 0)


def test_the_console_command_is_installed(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("conlora")
    done = subprocess.run(
        [command, "status", "-c", "gone.yaml"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("conlora: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "asked", "said"),
    [
        (["drain"], "drain", "drained after round 3; checkpoint /state/step-6"),
        (["leave"], "leave", "left after round 3; checkpoint /state/step-6"),
        (["drain", "--export", "x"], "path_there drain export", "drained after round 3; checkpoint /state/step-6; adapter x"),
        # A node whose export fails is out of the federation, but there still.
        (["leave", "--export", "x"], "path_there drain export leave", "left after round 3; checkpoint /state/step-6; adapter x"),
    ],
)  # fmt: skip
def test_who_leaves_takes_its_adapter_along_before_it_ends(
    conlora: Conlora, monkeypatch: pytest.MonkeyPatch, arguments: list[str], asked: str, said: str
) -> None:
    client = mock.MagicMock()
    client.__enter__.return_value = client
    client.drain.return_value = client.leave.return_value = (Path("/state/step-6"), 3)
    monkeypatch.setattr("conlora.cli.admin.admin_client", lambda config: client)
    assert conlora(*arguments) == (0, f"{said}\n", "")
    assert [name for name, *_ in client.method_calls if not name.startswith("_")] == asked.split()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (None, "neighbours are told now"),
        (NodeUnreachable("not there"), "no daemon runs; peers are told once it does"),
        (NodeSlow("busy"), "the daemon is busy, and looks once a minute"),
    ],
)
def test_a_rotation_says_who_is_told(
    conlora: Conlora, mercy: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None, told: str
) -> None:
    monkeypatch.setattr(AdminClient, "read_identity", mock.Mock(side_effect=error))
    code, out, _ = conlora("cert", "rotate", "-c", mercy / "conlora.yaml")
    assert code == 0
    assert told in out
    assert "the next certificate takes over on 20" in out
    assert load_identity(mercy / "identity").next


def test_a_certificate_of_an_authority(
    conlora: Conlora, mercy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, identity, config = Authority(), load_identity(mercy / "identity"), mercy / "conlora.yaml"
    code, asked, _ = conlora("cert", "request", "-c", config)
    assert code == 0
    assert x509.load_pem_x509_csr(asked.encode()).is_signature_valid
    config.write_text(f"ca_file: {root.file(tmp_path / 'ca.pem')}\n{config.read_text()}")
    file = tmp_path / "issued.pem"
    file.write_bytes(Authority().issue(identity).issued)
    code, _, error = conlora("cert", "install", file, "-c", config)
    assert code == 2
    assert (
        "nothing was installed: the certificate is not one that an authority in ca_file has issued for this node"
        in error
    )
    file.write_bytes(root.issue(identity).issued)
    code, out, _ = conlora("cert", "install", file, "-c", config)
    assert code == 0
    assert re.fullmatch(r"installed; expires on 20.* UTC; no daemon runs; peers are told once it does\n", out)
    monkeypatch.setattr(AdminClient, "read_identity", mock.Mock())
    assert "peers see it from now on, and no link was ended" in conlora("cert", "install", file, "-c", config)[1]
    assert json.loads(conlora("cert", "install", file, "-c", config, "--json")[1])["expires"] > time.time()
    assert conlora("id", "-c", config)[1] == identity.card("mercy", "mercy.example:7443"), "the card is the old one"
    monkeypatch.setattr(AdminClient, "read_identity", mock.Mock(side_effect=Refused("restart it before the next one")))
    end = load_chain(file.read_bytes())[0].not_valid_after_utc.timestamp()
    for shown, told in ((end, "peers see it from now on"), (end + 1, "restart it before the next one")):
        monkeypatch.setattr(AdminClient, "status", mock.Mock(return_value=mock.Mock(certificate_expires=shown)))
        assert told in conlora("cert", "install", file, "-c", config)[1], "a service may have found it by itself"
    code, out, _ = conlora("cert", "rotate", "-c", config)
    assert code == 0
    assert "before that, have one issued for the next key: `conlora cert request`" in out


@pytest.mark.parametrize(("columns", "width"), [({}, 200), ({"COLUMNS": "70"}, 70)], ids=["as it comes", "as asked"])
def test_a_pipe_is_wide_enough_for_an_address(columns: dict[str, str], width: int) -> None:
    """Rich takes 80 columns for one, and cuts off what a reader of a log needs."""
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | columns
    script = "from conlora.cli.common import console; print(console.width)"
    told = subprocess.run(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    assert int(told.stdout) == width
