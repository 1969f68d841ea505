"""Hostile bytes at the gateway's own parser of gRPC messages: it reads names as protobuf does, or refuses; its work is bounded."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from serving.envoy.grpc import SERVICE
from serving.runtime.modelway_runtime import wire
from support.envoy_process import RunningEnvoy
from support.grpc_node import Node, table
from support.grpc_stub import GrpcClient

pytestmark = pytest.mark.integration

CODES = grpc.StatusCode


@pytest.fixture(scope="module")
def envoy() -> Iterator[RunningEnvoy]:
    with RunningEnvoy(max_body_bytes=1 << 20) as running:
        yield running


@pytest.fixture(scope="module")
def served(envoy: RunningEnvoy) -> Iterator[Node]:
    with Node(envoy.sockets / "a.sock") as server:
        yield server


@pytest.fixture
def node(envoy: RunningEnvoy, served: Node) -> Node:
    envoy.gateway.apply(table(served))
    served.reset()
    return served


@pytest.fixture(scope="module")
def client(envoy: RunningEnvoy) -> Iterator[GrpcClient]:
    with GrpcClient(envoy.config.port) as opened:
        yield opened


def field_of(number: int, text: str) -> bytes:
    return wire.field(number, text)


OTHER_FIELDS = st.one_of(
    st.builds(wire.field, st.integers(3, 20000), st.binary(max_size=600)),
    st.builds(lambda number, value: wire.varint(number << 3) + wire.varint(value), st.integers(3, 20000), st.integers(0, 2**64 - 1)),
    st.builds(lambda number, data: wire.varint(number << 3 | 1) + data, st.integers(3, 200), st.binary(min_size=8, max_size=8)),
    st.builds(lambda number, data: wire.varint(number << 3 | 5) + data, st.integers(3, 200), st.binary(min_size=4, max_size=4)),
)
NAMES = st.sampled_from(["digits", "other", "nothing"])
NAMED = st.one_of(st.builds(field_of, st.just(1), NAMES), st.builds(field_of, st.just(2), st.sampled_from(["", "1", "2", "7"])))
FUZZ = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PATHS = {("digits", "1"): 1, ("digits", "2"): 2, ("digits", ""): 1, ("other", ""): 3, ("other", "1"): 3}


@FUZZ
@given(parts=st.lists(st.one_of(OTHER_FIELDS, NAMED), max_size=30))
def test_the_gateway_reads_names_as_protobuf_does(client: GrpcClient, node: Node, parts: list[bytes]) -> None:
    node.requests.clear()
    message = b"".join(parts)
    # Two strings, 1 and 2, as in ModelInferRequest; whatever else is in it is unknown and passed over.
    parsed = pb.ModelReadyRequest.FromString(message)
    done = client.send(message)
    release = PATHS.get((parsed.name, parsed.version))
    if release is None:
        assert done.code is (CODES.NOT_FOUND if parsed.name else CODES.INVALID_ARGUMENT), done
        return
    assert done.code is CODES.OK, done
    assert done.headers["x-modelway-release"] == str(release)
    assert [request.body for request in node.requests] == [message]


@FUZZ
@given(message=st.binary(max_size=100), spoilt=st.booleans(), position=st.integers(0, 40))
def test_hostile_bytes_are_refused_or_read_as_protobuf_does(
    client: GrpcClient, node: Node, message: bytes, spoilt: bool, position: int
) -> None:
    node.requests.clear()
    good = field_of(1, "digits") + field_of(7, "x" * 20) + field_of(2, "1")
    sent = good[:position] + message + good[position + 1 :] if spoilt else message
    done = client.send(sent)
    assert done.code in (CODES.OK, CODES.INVALID_ARGUMENT, CODES.NOT_FOUND), (sent, done)
    if done.code is CODES.OK:
        parsed = pb.ModelReadyRequest.FromString(sent)
        assert done.headers["x-modelway-release"] == str(PATHS[(parsed.name, parsed.version)])


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"\x18\x00" * 500_000, "too many fields: at most 4096"),
        (b"\x0a" + b"\xff" * 100, "more than 10 bytes"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "ends behind the message"),
        (b"\x0a\x05digi", "ends behind the message"),
        (b"\x12\x80", "ends behind the message"),
        (b"\x00", "no such field number"),
        (b"\x80\x80\x80\x80\x10", "no such field number"),
        (b"\x0b\x0c", "no such wire type"),
        (b"\x0e", "no such wire type"),
        (b"\x08\x01", "not a string"),
    ],
)
def test_a_message_that_cannot_be_read_is_refused(client: GrpcClient, node: Node, message: bytes, words: str) -> None:
    done = client.send(message)
    assert done.code is CODES.INVALID_ARGUMENT
    assert words in done.details
    assert not node.requests


def test_the_name_may_come_behind_everything_else(client: GrpcClient, node: Node) -> None:
    message = wire.field(7, bytes(700_000)) + wire.field(5, b"x") + field_of(2, "2") + field_of(1, "digits")
    assert client.send(message).headers["x-modelway-release"] == "2"


@pytest.mark.parametrize(
    ("frame", "status"),
    [
        (b"", "3"),
        (b"\0\0\0", "3"),
        (b"\0\0\0\0\x09\x0a\x06digits", "3"),
        (b"\0\0\0\0\x07\x0a\x06digits", "3"),
        (b"\1\0\0\0\x08\x0a\x06digits", "12"),
    ],
)
def test_what_is_not_exactly_one_frame_is_refused(envoy: RunningEnvoy, node: Node, tmp_path: Path, frame: bytes, status: str) -> None:
    (tmp_path / "frame").write_bytes(frame)
    argv = ["curl", "-sS", "-D", "-", "-o", str(tmp_path / "body"), "--http2-prior-knowledge", "-H", "content-type: application/grpc"]
    argv += ["--data-binary", f"@{tmp_path / 'frame'}", f"{envoy.url}/{SERVICE}/ModelInfer"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    assert f"grpc-status: {status}\n" in done.stdout.replace("\r", ""), done.stdout
    assert not node.requests


# --- HTTP/2 itself: https://www.rfc-editor.org/rfc/rfc9113#section-4.1

H2_DATA, H2_HEADERS, H2_RST_STREAM, H2_SETTINGS, H2_PING = 0, 1, 3, 4, 6
H2_MAX_CONCURRENT_STREAMS = 3


def h2_frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


H2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + h2_frame(H2_SETTINGS, 0, 0)


def h2_headers(stream: int) -> bytes:
    """The headers of a gRPC request whose message is still to come."""
    fields = {":method": "POST", ":scheme": "http", ":path": f"/{SERVICE}/ModelInfer", ":authority": "x"} | GRPC
    block = b"".join(b"\0" + bytes([len(key)]) + key.encode() + bytes([len(value)]) + value.encode() for key, value in fields.items())
    return h2_frame(H2_HEADERS, 4, stream, block)


GRPC = {"content-type": "application/grpc"}


def rapid_resets() -> Iterator[bytes]:
    for stream in range(1, 40_000, 2):
        yield h2_headers(stream) + h2_frame(H2_RST_STREAM, 0, stream, (8).to_bytes(4, "big"))


def empty_frames() -> Iterator[bytes]:
    yield h2_headers(1)
    for _ in range(20_000):
        yield h2_frame(H2_DATA, 0, 1)


def unread_pings() -> Iterator[bytes]:
    for _ in range(300_000):
        yield h2_frame(H2_PING, 0, 0, bytes(8))


@pytest.mark.parametrize("frames", [rapid_resets, empty_frames, unread_pings])
def test_who_abuses_http2_loses_the_connection(
    client: GrpcClient, node: Node, envoy: RunningEnvoy, frames: Callable[[], Iterator[bytes]]
) -> None:
    # A connection that stays open ends in a TimeoutError.
    with contextlib.suppress(ConnectionError), socket.socket() as raw:
        raw.settimeout(20)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # or the kernel takes all that is not read, and nobody notices
        raw.connect(("127.0.0.1", envoy.config.port))
        raw.sendall(H2_HELLO)
        for frame in frames():
            raw.sendall(frame)
        while raw.recv(1 << 16):
            pass
    assert client.send(field_of(1, "digits")).code is CODES.OK


def test_a_connection_has_at_most_100_streams(client: GrpcClient, node: Node, envoy: RunningEnvoy) -> None:
    found: list[tuple[int, bytes]] = []
    with socket.create_connection(("127.0.0.1", envoy.config.port), timeout=20) as raw, raw.makefile("rb") as reader:
        raw.sendall(H2_HELLO + b"".join(h2_headers(stream) for stream in range(1, 205, 2)))
        while not found or found[-1][0] != H2_RST_STREAM:
            head = reader.read(9)
            found.append((head[3], reader.read(int.from_bytes(head[:3], "big"))))
    sent = next(payload for kind, payload in found if kind == H2_SETTINGS and payload)
    entries = [sent[at : at + 6] for at in range(0, len(sent), 6)]
    settings_sent = {int.from_bytes(entry[:2], "big"): int.from_bytes(entry[2:], "big") for entry in entries}
    assert settings_sent[H2_MAX_CONCURRENT_STREAMS] == 100
    assert found[-1][1] == (7).to_bytes(4, "big")  # REFUSED_STREAM
    assert client.send(field_of(1, "digits")).code is CODES.OK
