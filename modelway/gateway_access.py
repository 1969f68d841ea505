"""How this machine's own commands reach the gateway: its address, the key to send, the certificates to trust."""

from __future__ import annotations

from collections.abc import Sequence

from modelway.client import Client, tls_context
from modelway.load import OpenLoopLoad
from modelway.settings import Settings


def open_client(settings: Settings, *, channel: str | None = None) -> Client:
    """A client of the gateway of these settings. Raises UsageError for a CA file that cannot be read."""
    return Client(settings.gateway_url, channel=channel, api_key=settings.api_key, ca_file=settings.gateway_ca_file)


def open_load(settings: Settings, path: str, payloads: Sequence[bytes], requests_per_s: float) -> OpenLoopLoad:
    """An open-loop load on a path of the gateway of these settings. Raises UsageError for a CA file that cannot be read."""
    return OpenLoopLoad(
        url=f"{settings.gateway_url}{path}",
        payloads=payloads,
        requests_per_s=requests_per_s,
        headers={"x-api-key": settings.api_key} if settings.api_key else {},
        verify=tls_context(settings.gateway_ca_file),
    )
