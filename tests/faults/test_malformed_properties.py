"""Whatever hypothesis thinks of: TorchServe with our worker answers it, and never with a 5xx."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import requests
import schemathesis
from flood import MODEL, Neighbour, says_why
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import originals

from marsmith.addresses import Tokens, bearer
from marsmith.client import Client, Reply
from marsmith.grpc_client import GrpcClient
from marsmith.server import TorchServe

pytestmark = pytest.mark.usefixtures("survivor")

# The fixtures are those of one server, which no example changes.
served = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

B64 = base64.b64encode(originals()["png"]).decode()
NUMBERS = st.integers() | st.floats()
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
NAMES = st.sampled_from(["top_k", "accept", "data", "parameters", ""]) | st.text(max_size=8)
PICTURES = st.just(B64) | st.text(max_size=20) | VALUES
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "data": PICTURES,
        "instances": VALUES | st.lists(st.fixed_dictionaries({"b64": PICTURES}), max_size=3),
        "parameters": VALUES | st.dictionaries(NAMES, VALUES, max_size=3),
    },
)


def check(reply: Reply) -> None:
    assert reply.status == 200 or (400 <= reply.status < 500 and says_why(reply)), reply


@served
@given(DOCUMENTS | VALUES)
def test_any_document(asker: Client, document: Any) -> None:
    body = json.dumps(document).encode()
    check(asker.predict(MODEL, body, content_type="application/json"))


@served
@given(top_k=VALUES)
def test_any_value_of_an_option(asker: Client, neighbour: Neighbour, top_k: Any) -> None:
    picture = base64.b64encode(neighbour.picture).decode()
    document = json.dumps({"data": picture, "parameters": {"top_k": top_k}}).encode()
    reply = asker.predict(MODEL, document, content_type="application/json")
    check(reply)
    whole = isinstance(top_k, (int, float, str)) and not isinstance(top_k, bool)
    assert reply.status == 400 or (whole and float(top_k) >= 1)


@served
@given(st.dictionaries(NAMES, st.binary(max_size=40), max_size=3))
def test_any_entries_over_grpc(one_worker: TorchServe, entries: dict[str, bytes]) -> None:
    with GrpcClient.of(one_worker.running) as client:
        check(client.predict(MODEL, entries))


def test_whatever_the_description_of_the_server_allows(one_worker: TorchServe) -> None:
    """TorchServe's OpenAPI document names no token, no models and no error of a prediction, so
    the first two are filled in and only the status is checked."""
    address = one_worker.running.addresses.inference
    token = bearer(Tokens.read(one_worker.home).inference)
    described = requests.options(f"{address}/", headers=token, timeout=20).json()
    for operations in described["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] == "model_name":
                    parameter["schema"]["enum"] = [MODEL, "none"]
    schema = schemathesis.openapi.from_dict(described)
    schema.config.update(base_url=address)
    labels = []
    for found in schema.get_all_operations():
        operation = found.ok()
        labels.append(operation.label)

        @settings(served, max_examples=60)
        @given(case=operation.as_strategy())
        def test(case: Any) -> None:
            assert case.call(headers=token, timeout=60).status_code < 500

        test()
    assert "POST /predictions/{model_name}" in labels
