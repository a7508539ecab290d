"""A release: a model version that the server has signed, its files cut into chunks named by their content.

The signature envelope is DSSE (Dead Simple Signing Envelope, protocol 1.0.2): the signed bytes travel as they are, so
no canonical form is needed, and the payload's type is part of what is signed. Keys are Ed25519 (RFC 8032), in hex.
`cryptography` is imported only when a key is used.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta

from .errors import CodecError, MessageError, SignatureError
from .messages import LARGEST_JSON, VERSION, Name, Text

PAYLOAD_TYPE = "application/vnd.sanderling.release+json"
#: Bytes of a chunk: every broker lets this much through.
CHUNK_SIZE = 32 * 1024
#: Bytes of one file of a release, at most.
LARGEST_FILE = 512 * 1024 * 1024

Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One file: its length in bytes, SHA-256, and the SHA-256 of each `CHUNK_SIZE` piece in order."""

    length: Annotated[int, Meta(ge=0, le=LARGEST_FILE)]
    sha256: Digest
    chunks: list[Digest]


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """What is signed. `targets` has "model.onnx", and may have "anchor.npz" (samples no better model may fail on)."""

    v: int = VERSION
    fleet: Name
    model: Name
    version: Annotated[int, Meta(ge=1, le=2**53)]
    #: Seconds since 1970 (UTC), by the server's clock.
    created: float
    targets: dict[Name, Target]
    labels: list[Text] = []
    #: For people: accuracy at release, where it came from. Never acted upon by a device.
    notes: dict[str, str | int | float] = {}


class _Signature(msgspec.Struct, frozen=True):
    keyid: Digest
    sig: str


class _Envelope(msgspec.Struct, frozen=True):
    payloadType: str  # noqa: N815 - the standard's spelling
    payload: str
    signatures: Annotated[list[_Signature], Meta(max_length=16)]


def cut(data: bytes) -> tuple[Target, dict[str, bytes]]:
    """Describe a file and cut it: the target, and its distinct chunks by digest. Raises `CodecError` if too long."""
    if len(data) > LARGEST_FILE:
        raise CodecError(f"a file of {len(data)} bytes cannot be released: at most {LARGEST_FILE}")
    pieces = [data[start : start + CHUNK_SIZE] for start in range(0, len(data), CHUNK_SIZE)]
    digests = [hashlib.sha256(piece).hexdigest() for piece in pieces]
    target = Target(length=len(data), sha256=hashlib.sha256(data).hexdigest(), chunks=digests)
    return target, dict(zip(digests, pieces, strict=True))


def generate_key() -> tuple[str, str]:
    """A new (private, public) pair of Ed25519 keys, 64 hex digits each."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    return private.private_bytes_raw().hex(), private.public_key().public_bytes_raw().hex()


def public_key(private_key: str) -> str:
    """The public key of a private one; raises `SignatureError` on anything but 64 hex digits."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(_key(private_key)).public_key().public_bytes_raw().hex()


def sign(release: Release, private_key: str) -> bytes:
    """The signed release as it is published on `release/<model>`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    payload = msgspec.json.encode(release)
    key = Ed25519PrivateKey.from_private_bytes(_key(private_key))
    envelope = _Envelope(
        payloadType=PAYLOAD_TYPE,
        payload=base64.b64encode(payload).decode(),
        signatures=[
            _Signature(_key_id(key.public_key().public_bytes_raw()), base64.b64encode(key.sign(_pae(payload))).decode())
        ],
    )
    return msgspec.json.encode(envelope)


def verify(envelope: bytes, trusted_keys: list[str]) -> Release:
    """The release in `envelope`, if one of `trusted_keys` (hex) signed it.

    Raises `SignatureError` if none did and `MessageError` if the bytes are no release that we know how to read.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if len(envelope) > LARGEST_JSON * 16:
        raise MessageError(f"release of {len(envelope)} bytes refused: at most {LARGEST_JSON * 16} are read")
    try:
        opened = msgspec.json.decode(envelope, type=_Envelope)
        payload = base64.b64decode(opened.payload, validate=True)
        signatures = {s.keyid: base64.b64decode(s.sig, validate=True) for s in opened.signatures}
    except (msgspec.DecodeError, binascii.Error, RecursionError, UnicodeDecodeError) as error:
        raise MessageError(f"not a signed release: {error}") from error
    if opened.payloadType != PAYLOAD_TYPE:
        raise MessageError(f"the signed payload is {opened.payloadType[:80]!r}, not {PAYLOAD_TYPE!r}")
    for key in map(_key, trusted_keys):
        signature = signatures.get(_key_id(key))
        if signature is None:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, _pae(payload))
        except InvalidSignature:
            continue
        return _decode(payload)
    signers = ", ".join(keyid[:12] for keyid in signatures) or "nobody"
    raise SignatureError(
        f"release refused: signed by {signers}, and none of the {len(trusted_keys)} trusted keys made that signature; "
        "put the server's public key (`sanderling server keys`) into trusted_keys of the agent's configuration"
    )


def _decode(payload: bytes) -> Release:
    try:
        release = msgspec.json.decode(payload, type=Release)
    except (msgspec.DecodeError, RecursionError) as error:
        raise MessageError(f"signed, but not a release: {error}") from error
    if release.v != VERSION:
        raise MessageError(f"release has protocol version {release.v}, this side speaks {VERSION}: update this device")
    for name, target in release.targets.items():
        pieces = -(-target.length // CHUNK_SIZE)
        if len(target.chunks) != pieces:
            raise MessageError(f"{name}: {target.length} bytes are {pieces} chunks, not {len(target.chunks)}")
    return release


def _pae(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what the signature is over."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != 32:
        raise SignatureError("an Ed25519 key is 64 hexadecimal digits; take it from `sanderling server keys`")
    return key


def _key_id(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()
