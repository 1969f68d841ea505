"""A node behind the real gateway that answers gRPC's bridged requests with what a test gives it, and a table to reach it by."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tritonclient.grpc import service_pb2

from serving.routes import RouteTable
from support.envoy_process import backend, live
from support.uds_server import SeenRequest, UdsServer

ANSWER = service_pb2.ModelInferResponse(model_name="digits", raw_output_contents=[b"x" * 12])


class Node(UdsServer):
    """Answers with `body`, a protobuf message unless `content_type` says otherwise."""

    def __init__(self, socket: Path) -> None:
        super().__init__(socket)
        self.reset()

    def reset(self) -> None:
        self.status, self.delay_s, self.body, self.content_type = 200, 0.0, ANSWER.SerializeToString(), "application/x-protobuf"
        self.response_headers = {}
        self.requests.clear()

    async def _answer(self, request: SeenRequest) -> bytes:
        self.requests.append(request)
        await asyncio.sleep(self.delay_s)
        headers = {"content-type": self.content_type, "content-length": str(len(self.body)), **self.response_headers}
        lines = [f"HTTP/1.1 {self.status} x", *(f"{key}: {value}" for key, value in headers.items()), "", ""]
        return "\r\n".join(lines).encode() + self.body


def table(node: UdsServer) -> RouteTable:
    """`digits` with the versions 1 (live in production) and 2 (in staging), `other` with 1."""
    one, two, other = backend(1, node.socket), backend(2, node.socket), backend(3, node.socket, version=1, model="other")
    tables = (live(one), live(two, channel="staging"), live(other))
    return RouteTable(
        backends=tuple(release for part in tables for release in part.backends), channels=tuple(c for part in tables for c in part.channels)
    )
