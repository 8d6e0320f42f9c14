"""Sketch records on the wire: signed by their owner, carried on by others, and believed only where the signature holds.

A node can lie about itself, and so distort a picture; it can't speak for another, and nothing here reaches training.
"""

import re

import numpy as np
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError

from conlora.core.schema import Vector
from conlora.core.sketchbook import DEPARTED_SECONDS, LONGEST_LIFETIME_SECONDS, MOST_NODES, Part, Record
from conlora.errors import SketchRejected
from conlora.net.certificates import founder
from conlora.net.identity import Identity
from conlora.net.wire import SketchHeader, SketchRecord, Transfer

PURPOSE = b"conlora sketch\0"  # what is signed here can't be passed off as anything else that the key may sign
LONGEST_NAME = 63
NODE_ID = re.compile(r"[A-Z2-7]{1,7}(-[A-Z2-7]{1,7}){7}")
OVERHEAD_BYTES = 1024  # of a record beside sketches and neighbours
NEIGHBOURS_BYTES = 80 * MOST_NODES  # at most
LONGEST_KEY = 512  # bytes; a P-256 key has 91. Larger ones would cost time before they turn out to be another kind
LARGEST_NUMBER = 1e18  # far above any adapter's, and small enough that its powers in an estimate stay finite
_ALGORITHM = ec.ECDSA(hashes.SHA256())
_KEY_FORM = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


class Scribe:
    """Signs this node's own records and checks others', for one federation and one size of sketch."""

    def __init__(self, identity: Identity, federation: bytes, size: int) -> None:
        """federation: digest of the settings that all nodes share. size: numbers in a sketch."""
        key = serialization.load_pem_private_key(identity.key, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        self._node_id = identity.node_id
        self._lineage = identity.lineage
        self._public = key.public_key().public_bytes(*_KEY_FORM)
        self._federation = federation
        self._size = size

    @property
    def record_bytes(self) -> int:
        """What a record takes on the wire, about."""
        return 2 * 4 * self._size + OVERHEAD_BYTES

    @property
    def max_record_bytes(self) -> int:
        """Larger records are refused before memory is taken for them."""
        return self.record_bytes + NEIGHBOURS_BYTES

    def sign(
        self,
        name: str,
        epoch: int,
        sequence: int,
        round_: int,
        neighbours: list[str],
        before: Vector,
        after: Vector,
        lifetime: float = DEPARTED_SECONDS,
        still: bool = False,
    ) -> Record:
        """This node's own record."""
        content = SketchRecord(
            federation=self._federation,
            name=name,
            epoch=epoch,
            sequence=sequence,
            round=round_,
            neighbours=neighbours,
            before=_bytes(before),
            after=_bytes(after),
            lifetime_seconds=int(lifetime),
            still=still,
        ).SerializeToString()
        header = SketchHeader(
            nbytes=len(content),
            public_key=self._public,
            signature=self._key.sign(PURPOSE + content, _ALGORITHM),
            lineage=self._lineage,
        )
        payload = Transfer(header, content)
        return Record(
            self._node_id,
            name,
            epoch,
            sequence,
            round_,
            tuple(neighbours),
            before,
            after,
            payload,
            int(lifetime),
            still,
        )

    def read(self, header: SketchHeader, payload: bytearray) -> Record:
        """The record that a neighbour has passed on.

        Raises SketchRejected with reason `key`, `signature`, `format`, `federation`, `name`, `neighbours`, `lifetime`,
        `size` or `not-finite`.
        """
        content = bytes(payload)
        node_id = _owner(header, content)
        try:
            record = SketchRecord.FromString(content)
        except DecodeError:
            raise SketchRejected("format", "the payload is no sketch record") from None
        if record.federation != self._federation:
            raise SketchRejected("federation", "the record was made for another federation")
        if not 0 < len(record.name) <= LONGEST_NAME or not record.name.isprintable():
            raise SketchRejected("name", "the owner's name is empty, too long or not printable")
        if len(record.neighbours) > MOST_NODES or not all(map(NODE_ID.fullmatch, record.neighbours)):
            raise SketchRejected("neighbours", "the neighbours are too many, or no node ids")
        if not 0 < record.lifetime_seconds <= LONGEST_LIFETIME_SECONDS:
            raise SketchRejected("lifetime", "the record is to count for ever, or not at all")
        before, after = self._vector(record.before), self._vector(record.after)
        transfer = Transfer(header, content)
        return Record(
            node_id,
            record.name,
            record.epoch,
            record.sequence,
            record.round,
            tuple(record.neighbours),
            before,
            after,
            transfer,
            record.lifetime_seconds,
            record.still,
        )

    def _vector(self, data: bytes) -> Vector:
        if len(data) != 4 * self._size:
            raise SketchRejected("size", f"a sketch has {len(data)} bytes instead of {4 * self._size}")
        vector = np.frombuffer(data, "<f4").astype(np.float32)
        if not (np.abs(vector) < LARGEST_NUMBER).all():  # NaN is not smaller either
            raise SketchRejected("not-finite", "a sketch holds NaN, infinity, or more than an adapter can come to")
        return vector


def outgoing(part: Part) -> Transfer:
    """A record on its way to a neighbour, with the age it has by now."""
    transfer = part.record.payload
    assert isinstance(transfer, Transfer)
    assert isinstance(transfer.header, SketchHeader)
    return Transfer(_with_age(transfer.header, part.age), transfer.payload)


def _with_age(header: SketchHeader, seconds: float) -> SketchHeader:
    return SketchHeader(
        nbytes=header.nbytes,
        public_key=header.public_key,
        signature=header.signature,
        age_seconds=seconds,
        lineage=header.lineage,
    )


def _owner(header: SketchHeader, content: bytes) -> str:
    """The node id of whoever has signed."""
    if len(header.public_key) > LONGEST_KEY:
        raise SketchRejected("key", "the owner's public key is not a P-256 key")
    try:
        key = serialization.load_der_public_key(header.public_key)
    except (ValueError, UnsupportedAlgorithm):
        raise SketchRejected("key", "the owner's public key can't be read") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise SketchRejected("key", "the owner's public key is not a P-256 key")
    if key.public_bytes(*_KEY_FORM) != header.public_key:
        raise SketchRejected("key", "the owner's public key is written in another form than ours")
    try:
        key.verify(header.signature, PURPOSE + content, _ALGORITHM)
    except InvalidSignature:
        raise SketchRejected("signature", "the record was not signed with the key beside it") from None
    try:
        return founder(header.lineage, header.public_key)
    except ValueError as error:
        raise SketchRejected("key", f"the owner's public key is not what it claims: {error}") from None


def _bytes(vector: Vector) -> bytes:
    return np.ascontiguousarray(vector, "<f4").tobytes()
