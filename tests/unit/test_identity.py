"""Identity and cards: the id is the public key's, nothing tampered with is believed, no identity is ever replaced."""

import base64
import hashlib
import os
import re
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.certificates import named_like, odd

from conlora.errors import CardError, ConfigError
from conlora.net.certificates import node_id_of, tls_name
from conlora.net.identity import Identity, Peer, create_identity, load_card, load_identity, load_peers


@pytest.fixture
def anna(tmp_path: Path) -> Identity:
    return create_identity(tmp_path / "anna")


def put_card(directory: Path, identity: Identity, called: str, file: str = "card.yaml", **changes: object) -> Path:
    """Writes a card, with some of its keys changed on the way."""
    directory.mkdir(exist_ok=True)
    path = directory / file
    path.write_text(yaml.safe_dump({**yaml.safe_load(identity.card(called, "mercy.example:7443")), **changes}))
    return path


def test_the_id_is_the_public_keys(mercy: Identity) -> None:
    certificate = x509.load_pem_x509_certificate(mercy.certificate)
    public = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = base64.b32encode(hashlib.sha256(public).digest()).decode().rstrip("=")
    assert mercy.node_id.replace("-", "") == digest
    assert re.fullmatch(r"[A-Z2-7]{7}(-[A-Z2-7]{7}){6}-[A-Z2-7]{3}", mercy.node_id)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [tls_name(mercy.node_id)]
    assert len(tls_name(mercy.node_id)) <= 63  # the longest label that a DNS name may have


def test_the_id_stays(tmp_path: Path, mercy: Identity) -> None:
    assert load_identity(tmp_path / "mercy") == mercy


def test_a_new_certificate_of_the_same_key_has_the_same_id(tmp_path: Path, mercy: Identity) -> None:
    renewed = resign(mercy)
    assert renewed.public_bytes(serialization.Encoding.PEM) != mercy.certificate
    assert node_id_of(renewed) == mercy.node_id
    (tmp_path / "mercy" / "node.crt").write_bytes(renewed.public_bytes(serialization.Encoding.PEM))
    assert load_identity(tmp_path / "mercy").node_id == mercy.node_id


def resign(identity: Identity) -> x509.Certificate:
    """Another self-signed certificate of the same key."""
    key = serialization.load_pem_private_key(identity.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    old = x509.load_pem_x509_certificate(identity.certificate)
    builder = x509.CertificateBuilder().subject_name(old.subject).issuer_name(old.issuer).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(old.not_valid_before_utc)
    return builder.not_valid_after(old.not_valid_after_utc).sign(key, hashes.SHA256())


def test_two_identities_differ(mercy: Identity, anna: Identity) -> None:
    assert mercy.node_id != anna.node_id


def test_a_certificate_can_not_sign_others(mercy: Identity) -> None:
    certificate = x509.load_pem_x509_certificate(mercy.certificate)
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False


def test_the_key_is_private(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        create_identity(tmp_path / "new")
    finally:
        os.umask(previous)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "new" / "node.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mercy: Identity, mode: int) -> None:
    key = tmp_path / "mercy" / "node.key"
    key.chmod(mode)
    with pytest.raises(ConfigError, match=rf"other users may read this private key; run chmod 600 {key}"):
        load_identity(tmp_path / "mercy")
    key.chmod(0o400)
    assert load_identity(tmp_path / "mercy") == mercy


def test_no_identity_tells_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: no readable identity .*`conlora init DIR` makes one"):
        load_identity(tmp_path / "nowhere")


@pytest.mark.parametrize("file", ["node.key", "node.crt"])
def test_a_damaged_file_is_named_damaged(tmp_path: Path, mercy: Identity, file: str) -> None:
    path = tmp_path / "mercy" / file
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"the identity is damaged .*restore it from a backup"):
        load_identity(tmp_path / "mercy")


def test_a_torn_pair_is_refused(tmp_path: Path, mercy: Identity, anna: Identity) -> None:
    (tmp_path / "mercy" / "node.crt").write_bytes(anna.certificate)
    with pytest.raises(ConfigError, match=r"node\.key and node\.crt don't belong together; restore them"):
        load_identity(tmp_path / "mercy")


@pytest.mark.parametrize("left", [{"node.key", "node.crt"}, {"node.key"}, {"node.crt"}])
def test_an_identity_is_never_replaced(tmp_path: Path, mercy: Identity, left: set[str]) -> None:
    directory = tmp_path / "mercy"
    for path in directory.iterdir():
        if path.name not in left:
            path.unlink()
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(ConfigError, match="holds an identity already; peers know this node by it"):
        create_identity(directory)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_an_identity_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"the identity can't be written .*choose a writable directory"):
        create_identity(tmp_path / "file" / "identity")


@pytest.mark.parametrize("address", [None, "mercy.example:7443"])
def test_a_card_is_read_back_as_the_peer(tmp_path: Path, mercy: Identity, address: str | None) -> None:
    path = tmp_path / "card.txt"
    path.write_text(mercy.card("mercy", address))
    assert load_card(path) == Peer("mercy", mercy.node_id, address, mercy.certificate)
    assert mercy.key.decode().splitlines()[1] not in path.read_text()


def test_a_card_survives_what_mail_does_to_line_ends(tmp_path: Path, mercy: Identity) -> None:
    path = tmp_path / "card.txt"
    path.write_bytes(mercy.card("mercy", None).replace("\n", "\r\n").encode() + b"\r\n\r\n")
    assert load_card(path).node_id == mercy.node_id


def test_a_changed_id_is_seen(tmp_path: Path, mercy: Identity, anna: Identity) -> None:
    path = put_card(tmp_path, mercy, "mercy", id=anna.node_id)
    with pytest.raises(CardError, match=r"card\.yaml: id: .* is not the id of this certificate .*mercy by telephone"):
        load_card(path)


def test_a_changed_certificate_is_seen(tmp_path: Path, mercy: Identity, anna: Identity) -> None:
    path = put_card(tmp_path, mercy, "mercy", certificate=anna.certificate.decode())
    with pytest.raises(CardError, match=r"the card was changed on its way, ask mercy by telephone") as caught:
        load_card(path)
    assert caught.value.exit_code == 2


def test_a_card_without_a_proper_certificate(tmp_path: Path, mercy: Identity) -> None:
    path = put_card(tmp_path, mercy, "mercy", certificate="-----BEGIN CERTIFICATE-----\nhello\n")
    with pytest.raises(CardError, match=r"certificate: no PEM certificate; ask mercy to mail the card again"):
        load_card(path)


@pytest.mark.parametrize("kind", ["a version that there is not", "an extension twice", "another subject"])
def test_a_card_with_a_certificate_that_is_no_nodes(tmp_path: Path, mercy: Identity, anna: Identity, kind: str) -> None:
    certificate = {**odd(mercy), "another subject": named_like(mercy, anna).certificate}[kind]
    path = put_card(tmp_path, mercy, "mercy", certificate=certificate.decode())
    with pytest.raises(
        CardError, match=r"card\.yaml: certificate: the certificate is .*; ask mercy to mail the card again"
    ):
        load_card(path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "../../etc/cron"}, "card.yaml: name: "),
        ({"address": "mercy"}, "card.yaml: address: 'mercy' is not an address; write host:port"),
        ({"key": "x"}, "card.yaml: key: unknown key"),
        ({"id": None}, "card.yaml: id: "),
    ],
)
def test_a_card_is_strict(tmp_path: Path, mercy: Identity, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        load_card(put_card(tmp_path, mercy, "mercy", **changes))


def test_peers_are_the_cards_in_the_folder(tmp_path: Path, mercy: Identity, anna: Identity) -> None:
    assert load_peers(tmp_path / "absent", mercy.node_id) == []
    put_card(tmp_path / "peers", anna, "anna")
    (tmp_path / "peers" / "notes.txt").write_text("not a card")
    assert [peer.name for peer in load_peers(tmp_path / "peers", mercy.node_id)] == ["anna"]


def test_a_node_is_no_peer_of_itself(tmp_path: Path, mercy: Identity) -> None:
    put_card(tmp_path / "peers", mercy, "someone")
    with pytest.raises(
        ConfigError, match=r"card\.yaml: is this node's own card; a node is no peer of itself, remove the file"
    ):
        load_peers(tmp_path / "peers", mercy.node_id)


def test_one_node_has_one_card(tmp_path: Path, mercy: Identity, anna: Identity) -> None:
    put_card(tmp_path / "peers", anna, "anna", "a.yaml")
    put_card(tmp_path / "peers", anna, "berta", "b.yaml")
    with pytest.raises(ConfigError, match=r"b\.yaml: berta has a second card with the same name or id; remove one"):
        load_peers(tmp_path / "peers", mercy.node_id)


def test_one_name_is_one_node(tmp_path: Path, mercy: Identity, anna: Identity) -> None:
    put_card(tmp_path / "peers", anna, "anna", "a.yaml")
    put_card(tmp_path / "peers", create_identity(tmp_path / "berta"), "anna", "b.yaml")
    with pytest.raises(ConfigError, match=r"b\.yaml: anna has a second card"):
        load_peers(tmp_path / "peers", mercy.node_id)


def test_one_damaged_card_is_named(tmp_path: Path, mercy: Identity, anna: Identity) -> None:
    put_card(tmp_path / "peers", anna, "anna", "a.yaml")
    (tmp_path / "peers" / "b.yaml").write_text("name: [")
    with pytest.raises(ConfigError, match=r"b\.yaml: not valid YAML"):
        load_peers(tmp_path / "peers", mercy.node_id)
