"""gRPC calls to a running TorchServe, every one with a timeout.

The token goes into the metadata as ``authorization: Bearer <key>``: the inference key for Ping and
Predictions, the management key for the rest. Where the server has ``enable_grpc_ssl`` the channels
are encrypted, and its certificate is one that ``REQUESTS_CA_BUNDLE`` names, as for REST, or that
gRPC trusts by itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from handlers.errors import ServerError
from marsmith.addresses import Addresses, Tokens, bearer
from marsmith.client import PAGE, TRUSTED, UNREADABLE, ModelApiOff, Refused, Reply, all_models
from marsmith.grpc_messages import CLASSES
from marsmith.processes import Running

# Messages are limited by the server's configuration and not by gRPC's own 4 MiB
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
# The status that REST answers in the same case
_STATUS = {"INVALID_ARGUMENT": 400, "PERMISSION_DENIED": 400, "NOT_FOUND": 404}


class GrpcClient:
    """Predictions and management over gRPC; ``timeout`` in seconds for every call.

    Errors are as in ``Client``. TorchServe's gRPC drops the status that a handler sets: it is taken
    from the body, where this project's handlers repeat it.
    """

    def __init__(self, addresses: Addresses, tokens: Tokens, *, timeout: float = 30.0) -> None:
        self.timeout = timeout
        services = {
            "Inference": (addresses.grpc_inference, tokens.inference),
            "Management": (addresses.grpc_management, tokens.management),
        }
        self._channels = {
            name: (_channel(address, addresses.grpc_tls), tuple(bearer(token).items()))
            for name, (address, token) in services.items()
        }

    @classmethod
    def of(cls, running: Running, *, timeout: float = 30.0) -> GrpcClient:
        """A client of a running server, with its addresses and its tokens."""
        return cls(running.addresses, Tokens.read(running.home), timeout=timeout)

    def __enter__(self) -> GrpcClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channels."""
        for channel, _ in self._channels.values():
            channel.close()

    def predict(
        self,
        model: str,
        fields: Mapping[str, bytes],
        *,
        version: str | None = None,
        timeout: float | None = None,
    ) -> Reply:
        """One prediction; the handler gets ``fields`` as bytes, like those of a multipart body.

        The reply has no headers and no content type. Without a live worker TorchServe mostly
        never answers: then the timeout raises ServerError.
        """
        entries = [CLASSES["Input"](key=key, value=value) for key, value in fields.items()]
        request = CLASSES["PredictionsRequest"](
            model_name=model, model_version=version or "", input=entries
        )
        try:
            answer = self._call(
                "Inference", "Predictions", request, "PredictionResponse", timeout
            ).prediction
        except grpc.RpcError as error:
            return _refusal(error)
        return Reply(_status(answer), "", answer)

    def ping(self) -> bool:
        """Whether TorchServe says Healthy, which it also does with dead or loading workers."""
        try:
            empty = CLASSES["Empty"]()
            answer = self._call("Inference", "Ping", empty, "TorchServeHealthResponse")
        except grpc.RpcError:
            return False
        return "Healthy" in answer.health

    def models(self) -> list[str]:
        """As ``Client.models``."""
        return list(all_models(self._page))

    def _page(self, token: str) -> Any:
        fields = {"limit": PAGE, "next_page_token": int(token)}
        return json.loads(self._manage("ListModels", fields))

    def describe(
        self,
        model: str,
        version: str | None = None,
        *,
        customized: bool = False,
        timeout: float | None = None,
    ) -> list[dict[str, Any]]:
        """As ``Client.describe``."""
        fields = {"model_name": model, "model_version": version, "customized": customized}
        found: list[dict[str, Any]] = json.loads(self._manage("DescribeModel", fields, timeout))
        return found

    def scale(
        self,
        model: str,
        min_worker: int,
        max_worker: int | None = None,
        *,
        version: str | None = None,
        synchronous: bool = True,
        timeout: float | None = None,
    ) -> str:
        """As ``Client.scale``, but for zero workers, which TorchServe's gRPC takes as one."""
        if min_worker < 1:
            raise ServerError(f"gRPC cannot scale to {min_worker} workers: use REST for that")
        fields = {
            "model_name": model,
            "model_version": version,
            "min_worker": min_worker,
            "max_worker": min_worker if max_worker is None else max_worker,
            "synchronous": synchronous,
        }
        return self._manage("ScaleWorker", fields, timeout)

    def set_default(self, model: str, version: str) -> str:
        """As ``Client.set_default``."""
        return self._manage("SetDefault", {"model_name": model, "model_version": version})

    def register(self, archive: str, timeout: float | None = None) -> str:
        """As ``Client.register``."""
        return self._manage("RegisterModel", {"url": archive, "synchronous": False}, timeout)

    def unregister(self, model: str, version: str, timeout: float | None = None) -> str:
        """As ``Client.unregister``."""
        fields = {"model_name": model, "model_version": version}
        return self._manage("UnregisterModel", fields, timeout)

    def _manage(self, method: str, fields: Mapping[str, Any], timeout: float | None = None) -> str:
        request = CLASSES[f"{method}Request"](**fields)
        try:
            answer = self._call("Management", method, request, "ManagementResponse", timeout)
        except grpc.RpcError as error:
            refusal = _refusal(error)
            problem = refusal.problem()
            if "Model API disabled" in problem:
                raise ModelApiOff(refusal.status) from error
            raise Refused(f"TorchServe refuses {method}: {problem}", refusal.status) from error
        return str(answer.msg)

    def _call(
        self, service: str, method: str, request: Any, answer: str, timeout: float | None = None
    ) -> Any:
        channel, metadata = self._channels[service]
        call = channel.unary_unary(
            f"/org.pytorch.serve.grpc.{service.lower()}.{service}APIsService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=CLASSES[answer].FromString,
        )
        seconds = timeout or self.timeout
        try:
            return call(request, timeout=seconds, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise ServerError(
                    f"no answer to {method} within {seconds:g} s: `marsmith status` shows whether"
                    " the model has live workers"
                ) from error
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                raise ServerError(
                    f"cannot reach TorchServe over gRPC ({error.details()}): start it with"
                    " `marsmith serve`"
                ) from error
            raise


def _refusal(error: Any) -> Reply:
    """An error status of gRPC as REST would have answered it."""
    lines = (error.details() or error.code().name).splitlines()
    missing = lines[-1].endswith("NotFoundException")
    status = 404 if missing else _STATUS.get(error.code().name, 500)
    body = {"code": status, "type": error.code().name, "message": lines[0]}
    return Reply(status, "application/json", json.dumps(body).encode())


def _status(body: bytes) -> int:
    """The status that an error body repeats; 200 for any other body."""
    if not body.startswith(b'{"code":'):
        return 200
    try:
        fields = json.loads(body)
        return int(fields["code"]) if {"type", "message"} <= fields.keys() else 200
    except (ValueError, TypeError):
        return 200


def _channel(address: str, tls: bool) -> grpc.Channel:
    if not tls:
        return grpc.insecure_channel(address, _OPTIONS)
    bundle = os.environ.get(TRUSTED)
    try:
        trusted = Path(bundle).read_bytes() if bundle else None
    except OSError as error:
        raise ServerError(
            f"{TRUSTED}={bundle} cannot be read ({error.strerror}): {UNREADABLE}"
        ) from error
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(trusted), _OPTIONS)
