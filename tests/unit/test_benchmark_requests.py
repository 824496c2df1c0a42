"""What benchmarks/serving sends and how it reads what comes back, without any server."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from email import message_from_bytes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.serving import loads, served
from benchmarks.serving.contender import Address, Server
from benchmarks.serving.contenders.bentoml import BentoMl
from benchmarks.serving.contenders.fastapi import FastApi
from benchmarks.serving.contenders.litserve import LitServe
from benchmarks.serving.contenders.mlserver import MlServer
from benchmarks.serving.contenders.ours import Ours
from benchmarks.serving.contenders.ray import RayServe
from benchmarks.serving.contenders.torchserve import Stock
from benchmarks.serving.pictures import resized
from benchmarks.serving.plan import Plan
from benchmarks.serving.subject import Subject
from handlers import pictures, properties, requests
from handlers.bundle import Limits
from marsmith.environment import CONFIG_NAME

MODEL = "mobilenet_v2_shapes"
PEERS = (BentoMl, FastApi, LitServe, MlServer, RayServe)
Make = Callable[[type[Server]], Server]


@pytest.fixture(scope="module")
def subject() -> Subject:
    """The default model with three rendered pictures."""
    return Subject.load(MODEL, count=3)


@pytest.fixture
def make(subject: Subject) -> Iterator[Make]:
    """Makes a contender that is never started."""
    with ExitStack() as stack:

        def made(kind: type[Server], of: Subject = subject) -> Server:
            one = stack.enter_context(closing(kind("torch", of, 1.0)))
            one.address = Address("http://127.0.0.1:1")
            return one

        yield made


def _loaded(
    made: Server, subject: Subject, monkeypatch: pytest.MonkeyPatch, *names: str
) -> tuple[list[tuple[loads.Bodies, int]], list[str]]:
    """The bodies and connections of the loads that count, and what was told, of a sitting with
    these loads."""
    asked: list[tuple[loads.Bodies, int]] = []
    told: list[str] = []
    plan = Plan(loads=names, connections=(2, 4), warm_requests=0, warm_each=1.0)

    def closed(bodies: loads.Bodies, connections: int, seconds: float) -> dict[str, Any]:
        # Neither those that warm it up at the start nor those that come before each load.
        if bodies is not sitting.bodies and seconds >= plan.seconds:
            asked.append((bodies, connections))
        figures = {"requests": 1, "failed": 0, "seconds": seconds, "client_cpu": 0.0}
        return {**figures, "connections": connections}

    monkeypatch.setattr(loads, "has_wrk", lambda: True)
    monkeypatch.setattr(loads, "closed", closed)
    monkeypatch.setattr(made, "wait_ready", lambda picture: None)
    monkeypatch.setattr(made, "timers", lambda: None)
    sizes = {size: resized(subject.pictures, size) for size in ("real", *names) if size != "eight"}

    def record(kind: str, **figures: Any) -> None:
        """The figures are made up."""

    sitting = served.Served(plan, made, 0, sizes.__getitem__, Path(), record, told.append)
    sitting.run()
    return asked, told


def _accepted(subject: Subject, bodies: loads.Bodies) -> list[list[tuple[int, int]]]:
    """The sizes of the pictures of each request, as our handler reads it within its limits."""
    limits, found = Limits(), []
    most = int(properties.parse(Path(CONFIG_NAME).read_text())["max_request_size"])
    for file in bodies.files:
        body = Path(file).read_bytes()
        assert len(body) <= most
        # As TorchServe gives it: JSON comes parsed.
        json_given = bodies.headers["Content-Type"] == "application/json"
        row = {"body": json.loads(body) if json_given else body}
        options = subject.handler.options()
        request = requests.read(row, bodies.headers, options, limits.max_pictures)
        assert request.many == json_given
        read = pictures.read_all(request.pictures, limits.max_pixels, lambda size: None)
        found.append([(one.width, one.height) for one in read])
    return found


def test_the_bodies_of_other_sizes_are_what_our_handler_accepts(
    subject: Subject, make: Make, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    asked, _ = _loaded(make(Ours), subject, monkeypatch, "large", "small")
    # Both by the most connections.
    [large, small] = [bodies for bodies, connections in asked if connections == 4]
    assert len(asked) == 2
    sizes = [size for [size] in _accepted(subject, large)]
    assert len(sizes) == len(subject.pictures)
    assert {tuple(sorted(size)) for size in sizes} == {(3024, 4032)}
    assert {max(size) for [size] in _accepted(subject, small)} == {160}
    assert large.path == small.path == f"/predictions/{MODEL}"


def test_eight_pictures_a_request_are_what_our_handler_accepts(
    subject: Subject, make: Make, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    [(eight, connections)], _ = _loaded(make(Ours), subject, monkeypatch, "eight")
    assert connections == 4
    own = [pictures.decode(one.data, Limits().max_pixels).size for one in subject.pictures]
    # All of them are asked for, and the first ones again where there are no more.
    [found] = _accepted(subject, eight)
    assert found == [own[i % 3] for i in range(8)]
    document = json.loads(Path(eight.files[0]).read_bytes())
    sent = [base64.b64decode(each["b64"]) for each in document["instances"]]
    assert sent == [subject.pictures[i % 3].data for i in range(8)]


@pytest.mark.parametrize("kind", [LitServe, RayServe, Stock])
def test_who_takes_one_picture_a_request_is_not_asked_for_eight(
    kind: type[Server], subject: Subject, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, told = _loaded(make(kind), subject, monkeypatch, "eight", "small")
    # The other load is asked for all the same.
    assert [Path(bodies.files[0]).parent.name for bodies, _ in asked] == ["small-1"]
    assert "  8 pictures a request: its protocol has none" in told


def _form(body: bytes, content_type: str) -> list[bytes]:
    message = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    return [part.get_payload(decode=True) for part in message.get_payload()]  # type: ignore


@pytest.mark.parametrize("kind", PEERS)
def test_peers_are_sent_the_same_pictures(kind: type[Server], subject: Subject, make: Make) -> None:
    given: Sequence[bytes] = [one.data for one in subject.pictures]
    made = make(kind)
    several = made.request(given)
    given = given if several else given[:1]
    request = several or made.request(given)
    assert request is not None
    if kind in (BentoMl, FastApi):
        sent = _form(request.body, request.content_type)
    elif kind is RayServe:
        sent = [request.body]
    else:
        document = json.loads(request.body)
        data = [document["image_data"]] if kind is LitServe else document["inputs"][0]["data"]
        sent = [base64.b64decode(each) for each in data]
    assert sent == list(given)


ANSWER = [{"label": "ring", "score": 0.75}, {"label": "star", "score": 0.25}]


@pytest.mark.parametrize(
    ("kind", "document"),
    [
        (Ours, ANSWER),
        (Ours, {"predictions": [ANSWER]}),
        # image_classifier with index_to_name.json.
        (Stock, {"ring": 0.75, "star": 0.25}),
        (BentoMl, [ANSWER]),
        (FastApi, [ANSWER]),
        (LitServe, {"prediction": ANSWER}),
        (RayServe, ANSWER),
        # The V2 inference protocol: a tensor of BYTES, each a JSON string.
        (
            MlServer,
            {
                "model_name": "model",
                "id": "1",
                "parameters": {},
                "outputs": [
                    {
                        "name": "answers",
                        "shape": [1, 1],
                        "datatype": "BYTES",
                        "parameters": {"content_type": "str"},
                        "data": [json.dumps(ANSWER)],
                    }
                ],
            },
        ),
    ],
)
def test_answers_of_every_server_become_labels_as_ours_are(
    kind: type[Server], document: Any, make: Make
) -> None:
    assert make(kind).answers(json.dumps(document).encode()) == [ANSWER]


def test_several_answers_of_one_request_stay_in_order(make: Make) -> None:
    other = [{"label": "cross", "score": 1.0}]
    texts = [json.dumps(each) for each in (ANSWER, other)]
    documents: dict[type[Server], Any] = {
        Ours: {"predictions": [ANSWER, other]},
        BentoMl: [ANSWER, other],
        FastApi: [ANSWER, other],
        MlServer: {"outputs": [{"data": texts}]},
    }
    for kind, document in documents.items():
        assert make(kind).answers(json.dumps(document).encode()) == [ANSWER, other]


def test_boxes_of_stock_become_ours() -> None:
    # object_detector names a box by its label, beside its score.
    document = [{"ring": [1, 2.5, 30, 40], "score": 0.75}, {"star": [0, 0, 9, 8], "score": 0.5}]
    with closing(Stock("tuned", Subject.load("ssdlite_shapes", count=1), 1.0)) as made:
        [found] = made.answers(json.dumps(document).encode())
    sides = {"xmin": 1.0, "ymin": 2.5, "xmax": 30.0, "ymax": 40.0}
    assert found[0] == {"label": "ring", "score": 0.75, "box": sides}
    assert (found[1]["label"], list(found[1]["box"].values())) == ("star", [0.0, 0.0, 9.0, 8.0])


def test_masks_of_stock_become_ours() -> None:
    # image_segmenter gives each pixel its class and how sure it is of that.
    subject = Subject.load("lraspp_shapes", count=1)
    ids = np.zeros((6, 4))
    ids[2:, 1:] = 1
    document = np.stack([ids, np.full_like(ids, 0.75)], axis=-1).tolist()
    with closing(Stock("tuned", subject, 1.0)) as made:
        [answer] = made.answers(json.dumps(document).encode())
    labels = subject.handler.bundle.labels
    assert answer["size"] == [6, 4]
    # Rows and columns are not exchanged: 12 of 24 pixels are of each class.
    assert {each["label"]: each["share"] for each in answer["classes"]} == {
        labels[0]: 0.5,
        labels[1]: 0.5,
    }
    assert np.array_equal(subject.handler.as_truth(answer), ids)
