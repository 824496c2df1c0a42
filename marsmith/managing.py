"""Management over gRPC for what manages by a ``Client``."""

from __future__ import annotations

from typing import Any

from marsmith.addresses import Addresses, Tokens
from marsmith.client import Client
from marsmith.grpc_client import GrpcClient


class GrpcManaged(Client):
    """A ``Client`` whose calls of management go over gRPC; predictions and metrics are as there."""

    def __init__(self, addresses: Addresses, tokens: Tokens, *, timeout: float = 30.0) -> None:
        super().__init__(addresses, tokens, timeout=timeout)
        self._grpc = GrpcClient(addresses, tokens, timeout=timeout)

    def close(self) -> None:
        """Close the kept connections and the channels."""
        super().close()
        self._grpc.close()

    def models(self) -> list[str]:
        """As ``Client.models``."""
        return self._grpc.models()

    def describe(
        self, model: str, version: str | None = None, **given: Any
    ) -> list[dict[str, Any]]:
        """As ``Client.describe``."""
        return self._grpc.describe(model, version, **given)

    def scale(self, model: str, min_worker: int, *most: int | None, **given: Any) -> str:
        """As ``GrpcClient.scale``."""
        return self._grpc.scale(model, min_worker, *most, **given)

    def set_default(self, model: str, version: str) -> str:
        """As ``Client.set_default``."""
        return self._grpc.set_default(model, version)

    def register(self, archive: str, timeout: float | None = None) -> str:
        """As ``Client.register``."""
        return self._grpc.register(archive, timeout)

    def unregister(self, model: str, version: str, timeout: float | None = None) -> str:
        """As ``Client.unregister``."""
        return self._grpc.unregister(model, version, timeout)
