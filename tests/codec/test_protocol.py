"""Topics, messages, releases: build and parse are inverses, and any bytes give a value or the documented error."""

from __future__ import annotations

import base64
import contextlib
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanderling.codec import messages, release, topics
from sanderling.codec.errors import CodecError, MessageError, SignatureError, TopicError

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z", fullmatch=True)
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
TOPICS = st.one_of(
    st.builds(topics.Topic, NAMES, st.sampled_from(sorted(topics.DEVICE_KINDS)), NAMES),
    st.builds(topics.Topic, NAMES, st.just("release"), NAMES),
    st.builds(topics.Topic, NAMES, st.just("chunk"), DIGESTS),
)
KINDS = (messages.DeviceState, messages.Telemetry, messages.Delta, messages.Event, messages.Receipt)
PROTOCOL_PAGE = Path(__file__).parents[2] / "docs" / "reference" / "protocol.md"


@given(TOPICS)
def test_parse_undoes_build(topic: topics.Topic) -> None:
    assert topics.parse(topics.build(topic)) == topic


@given(
    st.text()
    | st.lists(st.sampled_from(["sanderling", "v1", "f", "device", "d", "delta", "chunk", "", "+", "#"])).map("/".join)
)
def test_any_string_is_a_topic_or_the_error(text: str) -> None:
    try:
        topic = topics.parse(text)
    except TopicError:
        return
    assert topics.build(topic) == text


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a" * 65, "-a", "ä", "a\n", "a b"])
def test_unusable_names_are_refused(name: str) -> None:
    with pytest.raises(TopicError, match="not a usable name"):
        topics.build(topics.Topic("fleet", "delta", name))


def test_reference_page_has_every_topic_and_message() -> None:
    page = PROTOCOL_PAGE.read_text()
    for kind, direction in topics.DEVICE_KINDS.items():
        assert f"| `device/<device>/{kind}` | {direction} |" in page
    assert "| `release/<model>` |" in page
    assert "| `chunk/<sha256>` |" in page
    for message in KINDS:
        assert f"`{message.__name__}`" in page


def example(kind: type[messages.Message]) -> messages.Message:
    examples: dict[type[messages.Message], messages.Message] = {
        messages.DeviceState: messages.DeviceState(time=1.5, online=True, boot=3, agent_version="0.1", models={"m": 2}),
        messages.Telemetry: messages.Telemetry(
            time=2.0, boot=3, model="m", version=2, serving="personal", resident={"worker": 5},
            prequential=messages.Accuracy(value=0.5, count=64),
        ),
        messages.Delta: messages.Delta(
            time=3.0, model="m", base_version=2, sequence=7, samples=40, label_histogram=[20, 20], blob=b"\0\xff"
        ),
        messages.Event: messages.Event(time=4.0, sequence=8, kind="installed", model="m", version=2),
        messages.Receipt: messages.Receipt(time=5.0, of="delta", base_version=2, sequence=7, status="accepted"),
    }  # fmt: skip
    return examples[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_decode_undoes_encode(kind: type[messages.Message]) -> None:
    message = example(kind)
    assert messages.decode(kind, messages.encode(message)) == message


@pytest.mark.parametrize("kind", KINDS)
@given(payload=st.binary(max_size=200), place=st.integers(0, 400), byte=st.integers(0, 255))
def test_any_bytes_are_a_message_or_the_error(
    kind: type[messages.Message], payload: bytes, place: int, byte: int
) -> None:
    mutated = bytearray(messages.encode(example(kind)))
    mutated[place % len(mutated)] = byte
    for data in (payload, bytes(mutated), bytes(mutated[: place % len(mutated)])):
        with contextlib.suppress(MessageError):
            assert isinstance(messages.decode(kind, data), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_version_is_refused_and_unknown_field_ignored(kind: type[messages.Message]) -> None:
    codec = msgspec.msgpack if kind.binary else msgspec.json
    fields = msgspec.to_builtins(example(kind), builtin_types=(bytes,))
    assert messages.decode(kind, codec.encode({**fields, "invented_later": 1})) == example(kind)
    with pytest.raises(MessageError, match="protocol version 9"):
        messages.decode(kind, codec.encode({**fields, "v": 9}))


def test_oversized_message_is_refused_unread() -> None:
    with pytest.raises(MessageError, match="at most"):
        messages.decode(messages.Telemetry, b" " * (messages.LARGEST_JSON + 1))


def released(data: bytes = b"model" * 20000) -> release.Release:
    target, _ = release.cut(data)
    return release.Release(fleet="f", model="m", version=4, created=1.0, targets={"model.onnx": target}, labels=["a"])


def test_signed_release_comes_back_and_chunks_make_the_file() -> None:
    private, public = release.generate_key()
    data = bytes(range(256)) * 300
    target, chunks = release.cut(data)
    assert b"".join(chunks[digest] for digest in target.chunks) == data
    assert all(len(chunk) <= release.CHUNK_SIZE for chunk in chunks.values())
    value = released(data)
    assert release.verify(release.sign(value, private), ["00" * 32, public]) == value
    assert release.public_key(private) == public


def test_wrong_key_changed_payload_and_borrowed_signature_are_refused() -> None:
    private, public = release.generate_key()
    other_private, other_public = release.generate_key()
    envelope = release.sign(released(), private)
    with pytest.raises(SignatureError, match="trusted_keys"):
        release.verify(envelope, [other_public])
    opened = json.loads(envelope)
    changed = json.loads(base64.b64decode(opened["payload"]))
    changed["version"] = 5
    forged = {**opened, "payload": base64.b64encode(json.dumps(changed).encode()).decode()}
    with pytest.raises(SignatureError):
        release.verify(json.dumps(forged).encode(), [public])
    borrowed = {**opened, "signatures": json.loads(release.sign(released(), other_private))["signatures"]}
    with pytest.raises(SignatureError):
        release.verify(json.dumps(borrowed).encode(), [public])
    with pytest.raises(SignatureError, match="64 hexadecimal digits"):
        release.verify(envelope, ["not a key"])


def test_target_whose_chunks_do_not_add_up_is_refused() -> None:
    private, public = release.generate_key()
    value = released()
    broken = msgspec.structs.replace(value.targets["model.onnx"], chunks=[])
    with pytest.raises(MessageError, match="chunks"):
        release.verify(release.sign(msgspec.structs.replace(value, targets={"model.onnx": broken}), private), [public])


@given(junk=st.binary(max_size=300), place=st.integers(0, 2000), byte=st.integers(0, 255))
def test_any_bytes_are_a_release_or_a_codec_error(junk: bytes, place: int, byte: int) -> None:
    mutated = bytearray(ENVELOPE)
    mutated[place % len(mutated)] = byte
    for data in (junk, bytes(mutated), bytes(mutated[: place % len(mutated)])):
        with contextlib.suppress(CodecError):
            assert release.verify(data, [PUBLIC]) == released()


PRIVATE, PUBLIC = release.generate_key()
ENVELOPE = release.sign(released(), PRIVATE)
