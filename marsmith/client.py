"""REST calls to a running TorchServe, every one with a timeout."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import requests

from handlers.errors import ServerError
from marsmith.addresses import Addresses, Tokens, bearer
from marsmith.processes import Running


@dataclass(frozen=True)
class Reply:
    """An answer: HTTP status, content type ("" for none), body and headers."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the status says success."""
        return self.status < 400

    def json(self) -> Any:
        """The body as JSON; raises ServerError where it is none."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise ServerError(
                f"the answer ({self.status}, {self.content_type or 'no content type'},"
                f" {len(self.body)} bytes) is not JSON: {self.body[:80]!r}"
            ) from error

    def problem(self) -> str:
        """Status and message of an answer that is not ok, in one line."""
        try:
            message = json.loads(self.body)["message"]
        except (ValueError, KeyError, TypeError):
            message = repr(self.body[:200])
        return f"{self.status}: {message}"


@dataclass(frozen=True)
class Multipart:
    """A multipart/form-data body: bytes become file parts, text becomes fields."""

    fields: Mapping[str, bytes | str]


class Refused(ServerError):
    """TorchServe, or a worker, has answered a call of management with an error status."""

    def __init__(self, problem: str, status: int) -> None:
        super().__init__(problem)
        self.status = status


class ModelApiOff(Refused):
    """TorchServe was started without the API that registers and removes models."""

    def __init__(self, status: int) -> None:
        words = "stop it, and start it with `marsmith serve --model-api`"
        super().__init__(f"TorchServe's model API is off: {words}", status)


Body = bytes | Mapping[str, Any] | Multipart

# What requests reads by itself: the file of the certificates that are trusted
TRUSTED = "REQUESTS_CA_BUNDLE"
NOT_FOUND = 404
UNREADABLE = "name the PEM file of the certificates that are trusted"


PAGE = 100


def all_models(read: Callable[[str], Mapping[str, Any]]) -> Iterator[str]:
    """The names of all models of a list in pages; ``read`` gives the page of a token."""
    page: Mapping[str, Any] = {"nextPageToken": "0"}
    # A last page that is exactly full names a next one, which is empty
    while token := page.get("nextPageToken"):
        page = read(token)
        yield from (entry["modelName"] for entry in page["models"])


class Client:
    """Predictions and management of one TorchServe; ``timeout`` in seconds for every call.

    A call that gets no answer raises ServerError; an answer with an error status is a Reply of
    ``predict`` and a ServerError of everything else. Threads take a client each.
    """

    def __init__(self, addresses: Addresses, tokens: Tokens, *, timeout: float = 30.0) -> None:
        self.addresses = addresses
        self.tokens = tokens
        self.timeout = timeout
        self._session = requests.Session()
        # Proxies are not for loopback, and a ~/.netrc would replace the token
        self._session.trust_env = False
        # Which authority signed the server's certificate, as for every program with requests, which
        # takes an empty name for none
        self._session.verify = os.environ.get(TRUSTED) or True

    @classmethod
    def of(cls, running: Running, *, timeout: float = 30.0) -> Client:
        """A client of a running server, with its addresses and its tokens."""
        return cls(running.addresses, Tokens.read(running.home), timeout=timeout)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the kept connections."""
        self._session.close()

    def predict(
        self,
        model: str,
        body: Body,
        *,
        version: str | None = None,
        content_type: str = "application/octet-stream",
        accept: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Reply:
        """One prediction for picture bytes (sent as ``content_type``), JSON or multipart fields.

        Without a live worker TorchServe mostly never answers: then the timeout raises ServerError.
        """
        own = {"accept": accept} if accept else {}
        content: dict[str, Any]
        if isinstance(body, bytes):
            own["content-type"] = content_type
            content = {"data": body}
        elif isinstance(body, Multipart):
            parts = body.fields.items()
            content = {"files": {k: (k if isinstance(v, bytes) else None, v) for k, v in parts}}
        else:
            content = {"json": body}
        return self._call(
            "POST",
            f"{self.addresses.inference}/predictions/{_path(model, version)}",
            self.tokens.inference,
            headers={**own, **(headers or {})},
            timeout=timeout,
            **content,
        )

    def ping(self) -> bool:
        """Whether TorchServe says Healthy, which it also does with dead or loading workers."""
        url = f"{self.addresses.inference}/ping"
        return self._call("GET", url, self.tokens.inference).ok

    def models(self) -> list[str]:
        """The names of all models, over all of the list's pages."""
        return list(all_models(self._page))

    def _page(self, token: str) -> Any:
        return self._manage("GET", f"models?limit={PAGE}&next_page_token={token}")

    def describe(
        self,
        model: str,
        version: str | None = None,
        *,
        customized: bool = False,
        timeout: float | None = None,
    ) -> list[dict[str, Any]]:
        """TorchServe's description of the default version, of one, or of ``"all"``.

        ``customized`` adds what the handler's ``describe_handle`` says, asked of one worker.
        """
        query = "?customized=true" if customized else ""
        path = f"models/{_path(model, version)}{query}"
        found: list[dict[str, Any]] = self._manage("GET", path, timeout)
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
        """Set the number of workers; ``max_worker`` is ``min_worker`` where not given.

        Synchronous means that the workers have loaded when the call returns.
        """
        if max_worker is None:
            max_worker = min_worker
        query = (
            f"min_worker={min_worker}&max_worker={max_worker}"
            f"&synchronous={str(synchronous).lower()}"
        )
        return self._status("PUT", f"models/{_path(model, version)}?{query}", timeout)

    def set_default(self, model: str, version: str) -> str:
        """Make a loaded version the one that requests without a version get."""
        return self._status("PUT", f"models/{_path(model, version)}/set-default")

    def register(self, archive: str, timeout: float | None = None) -> str:
        """Load an archive of the model store, by its bare file name, beside other versions.

        Returns when TorchServe has unpacked it, with the workers still loading. The model's first
        version becomes the default one.
        """
        path = f"models?url={quote(archive, safe='')}&synchronous=false"
        return self._status("POST", path, timeout)

    def unregister(self, model: str, version: str, timeout: float | None = None) -> str:
        """End a version that is not the default one, unless it is the only one.

        What waits in its queue or is under way is lost without an answer: drain it first.
        """
        return self._status("DELETE", f"models/{_path(model, version)}", timeout)

    def metrics(self) -> str:
        """TorchServe's metrics as Prometheus' text, which ``metrics_mode=prometheus`` serves."""
        reply = self._call("GET", f"{self.addresses.metrics}/metrics", "")
        if not reply.ok:
            raise ServerError(
                f"TorchServe has no metrics to read ({reply.problem()}): set"
                " metrics_mode=prometheus in config.properties"
            )
        return reply.body.decode("utf-8", errors="replace")

    def _status(self, method: str, path: str, timeout: float | None = None) -> str:
        return str(self._manage(method, path, timeout)["status"])

    def _manage(self, method: str, path: str, timeout: float | None = None) -> Any:
        url = f"{self.addresses.management}/{path}"
        reply = self._call(method, url, self.tokens.management, timeout=timeout)
        if reply.status == 405:
            raise ModelApiOff(reply.status)
        if not reply.ok:
            raise Refused(f"TorchServe refuses {method} {path}: {reply.problem()}", reply.status)
        return reply.json()

    def _call(
        self,
        method: str,
        url: str,
        token: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **content: Any,
    ) -> Reply:
        seconds = timeout or self.timeout
        try:
            answer = self._session.request(
                method,
                url,
                headers={**(headers or {}), **bearer(token)},
                timeout=seconds,
                **content,
            )
        except requests.Timeout as error:
            raise ServerError(
                f"no answer within {seconds:g} s from {url}: `marsmith status` shows whether the"
                " model has live workers"
            ) from error
        except requests.RequestException as error:
            raise ServerError(
                f"cannot reach TorchServe at {url} ({error}): start it with `marsmith serve`"
            ) from error
        except OSError as error:
            raise ServerError(f"{TRUSTED} cannot be read ({error}): {UNREADABLE}") from error
        content_type = answer.headers.get("content-type", "")
        return Reply(answer.status_code, content_type, answer.content, answer.headers)


def _path(model: str, version: str | None) -> str:
    return "/".join(quote(part, safe="") for part in (model, version) if part)
