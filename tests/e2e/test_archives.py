"""The default archives in a real TorchServe: batches, broken pictures, refusals, every way in."""

from __future__ import annotations

import base64
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from homes import serving
from PIL import Image
from tiny import PROJECT, marsmith

from benchmarks.asking import asking
from handlers import golden, pictures, plugins
from handlers.bundle import Bundle
from marsmith import samples
from marsmith.archive import pack, read_json, unpack
from marsmith.client import Client, Multipart, Reply
from marsmith.drain import Queue
from marsmith.grpc_client import GrpcClient
from marsmith.retire import scale_down
from marsmith.server import TorchServe
from marsmith.spec import defaults, load
from marsmith.status import check_golden, read_status

MODEL = "lenet5_digits"


@pytest.fixture(scope="module")
def served(archives: Path, make_home: Callable[[], Path]) -> Iterator[TorchServe]:
    with serving(make_home(), archives) as server:
        yield server


@pytest.fixture
def client(served: TorchServe) -> Iterator[Client]:
    with served.client(timeout=60) as client:
        yield client


def _pids(client: Client) -> set[int]:
    return {worker["pid"] for worker in client.describe(MODEL)[0]["workers"]}


def test_every_archive_answers_its_golden_requests(served: TorchServe, client: Client) -> None:
    for status in read_status(served.running, client):
        check = check_golden(client, status)
        assert check.problem is None
        assert check.count > 0


def test_a_batch_with_broken_pictures_loses_only_those(
    served: TorchServe, client: Client, digits: dict[str, bytes]
) -> None:
    before = _pids(client)
    bodies = [digits[d] for d in "01234"] + [b"", b"no picture", digits["5"][:100]]

    def ask(body: bytes) -> Reply:
        with served.client(timeout=60) as own:
            return own.predict(MODEL, body)

    with ThreadPoolExecutor(len(bodies)) as pool:
        replies = list(pool.map(ask, bodies))
    assert [reply.status for reply in replies] == [200] * 5 + [415, 415, 422]
    assert [reply.json()[0]["label"] for reply in replies[:5]] == list("01234")
    assert all({"code", "type", "message"} <= reply.json().keys() for reply in replies[5:])
    assert _pids(client) == before


def test_every_way_in_gets_the_same_answer(
    served: TorchServe, client: Client, digits: dict[str, bytes]
) -> None:
    picture = digits["3"]
    text = base64.b64encode(picture).decode()
    expected = client.predict(MODEL, picture).json()[:2]
    options = {"top_k": 2}
    ways = [
        client.predict(MODEL, picture, headers={"X-Marsmith-Top-K": "2"}),
        client.predict(MODEL, picture, content_type="image/png", headers={"x-marsmith-top_k": "2"}),
        client.predict(MODEL, Multipart({"data": picture, "top_k": "2"})),
        client.predict(MODEL, Multipart({"any": picture, "parameters": '{"top_k": 2}'})),
        client.predict(MODEL, {"data": text, "parameters": options}),
    ]
    with GrpcClient.of(served.running, timeout=60) as grpc:
        ways.append(grpc.predict(MODEL, {"data": picture, "top_k": b"2"}))
        ways.append(grpc.predict(MODEL, {"body": b'{"data": "%s"}' % text.encode(), "top_k": b"2"}))
        assert grpc.predict(MODEL, {"data": picture, "top_k": b"-1"}).status == 400
    for way in ways:
        assert way.json() == expected
    several = client.predict(MODEL, {"instances": [{"b64": text}] * 2, "parameters": options})
    assert several.json() == {"predictions": [expected, expected]}


def test_more_labels_than_classes_are_all_labels(client: Client, digits: dict[str, bytes]) -> None:
    reply = client.predict(MODEL, digits["1"], headers={"X-Marsmith-Top-K": "99"})
    assert len(reply.json()) == 10
    assert reply.content_type == "application/json"


def test_an_unknown_option_is_answered_with_the_accepted_ones(
    client: Client, digits: dict[str, bytes]
) -> None:
    reply = client.predict(MODEL, digits["1"], headers={"X-Marsmith-Top": "3"})
    assert reply.status == 400
    assert set(reply.json()["accepted"]) == {"top_k"}


def test_another_iou_of_nms_is_refused_with_that_of_the_archive(
    client: Client, project: Path
) -> None:
    scene = (project / "samples/scenes/scene1.jpg").read_bytes()
    for option in ("Nms-Iou", "Iou", "Iou-Threshold"):
        reply = client.predict("ssdlite_shapes", scene, headers={f"X-Marsmith-{option}": "0.3"})
        assert reply.status == 400
        assert "IoU of NMS is fixed when the archive is built, here 0.55" in reply.json()["message"]
        assert set(reply.json()["accepted"]) == {"min_score"}


@pytest.mark.parametrize("name", [each.name for each in defaults(PROJECT)])
def test_a_drawn_answer_is_the_json_answer_drawn(
    archives: Path, client: Client, project: Path, name: str
) -> None:
    """Pixel by pixel, on a picture of the model's kind."""
    (archive,) = archives.glob(f"{name}-*.mar")
    bundle = Bundle.parse(json.dumps(read_json(archive, "marsmith.json")))
    task = plugins.load_task(bundle.task)()
    task.bundle = bundle
    sample = samples.found(project / load(project / f"models/{name}.yaml").samples)[0]
    options = {f"X-Marsmith-{key}": value for key, value in task.drawing_options().items()}
    answer = client.predict(name, sample.read_bytes(), headers=options).json()
    picture = pictures.decode(sample.read_bytes(), bundle.limits.max_pixels)
    expected = np.asarray(task.draw(answer, picture), np.int16)
    for accept, most in (("image/png", 0), ("image/jpeg", 60)):
        reply = client.predict(name, sample.read_bytes(), accept=accept)
        drawn = np.asarray(Image.open(io.BytesIO(reply.body)).convert("RGB"), np.int16)
        assert drawn.shape == expected.shape
        away = np.abs(drawn - expected)
        assert away.max() <= most
        assert away.mean() < 2
    assert (expected.shape[1::-1] != picture.size) or (expected != np.asarray(picture)).any()


@pytest.mark.parametrize(("media_type", "form"), [("image/png", "PNG"), ("image/jpeg", "JPEG")])
def test_a_drawn_answer(
    client: Client, digits: dict[str, bytes], media_type: str, form: str
) -> None:
    reply = client.predict(MODEL, digits["7"], accept=media_type)
    assert (reply.status, reply.content_type) == (200, media_type)
    drawn = Image.open(io.BytesIO(reply.body))
    assert drawn.format == form
    assert drawn.height > Image.open(io.BytesIO(digits["7"])).height


def test_describe_tells_what_is_served(client: Client) -> None:
    told = client.describe(MODEL, customized=True)[0]["customizedMetadata"]
    for word in ("image-classification", "torchscript", "sha256", "top_k", '"labels"'):
        assert word in (told if isinstance(told, str) else str(told).replace("'", '"'))


def test_real_workers_end_between_requests(
    served: TorchServe, client: Client, digits: dict[str, bytes]
) -> None:
    client.scale(MODEL, 2, timeout=120)
    workers = client.describe(MODEL)[0]["workers"]
    queue = Queue(client, MODEL, "1.0")
    assert {queue.ask_worker() for _ in range(10)} == {worker["pid"] for worker in workers}
    bodies = list(digits.values())
    expected = {body: client.predict(MODEL, body).json() for body in bodies}
    with asking(
        served.running,
        "1.0",
        pause=0,
        model=MODEL,
        bodies=lambda thread, count: bodies[(thread + count) % len(bodies)],
        judge=lambda body, found: ("1.0", _same(found, expected[body])),
    ) as counts:
        scale_down(served.running, MODEL, "1.0", 1, 30)
    assert counts.problems == []
    [left] = client.describe(MODEL)[0]["workers"]
    assert left["pid"] == workers[0]["pid"]


def test_verify_finds_that_the_server_has_another_archive(
    served: TorchServe, archives: Path, project: Path, tmp_path: Path
) -> None:
    right, other = archives / f"{MODEL}-1.0.mar", tmp_path / "other.mar"
    weights = ("--weights", str(project / "weights/lenet5_digits.pth"))
    done = marsmith(served.home, "verify", str(right), *weights, "--served")
    assert done.returncode == 0, done.stderr
    assert "agrees with the server: 2 of 2 decisions the same" in done.stdout
    assert "agrees with the server, 16 at once: 16 of 16 decisions the same" in done.stdout
    # The same network under the same name and version, whose labels are in another order.
    unpack(right, tmp_path / "other")
    shutil.rmtree(tmp_path / "other/MAR-INF")
    bundle = Bundle.read(tmp_path / "other")
    changed = replace(bundle, labels=bundle.labels[::-1])
    changed.write(tmp_path / "other")
    requests = [
        replace(each, answer=[{**one, "label": str(9 - int(one["label"]))} for one in each.answer])
        for each in golden.read(tmp_path / "other")
    ]
    (tmp_path / "other" / golden.FILE).write_text(golden.to_json(requests))
    pack(tmp_path / "other", changed, other)
    done = marsmith(served.home, "verify", str(other), *weights, "--served")
    assert done.returncode == 1, done.stderr
    assert "agrees with eager: 2 of 2 decisions the same" in done.stdout
    assert "DIFFERS with the server: 0 of 2 decisions the same" in done.stdout
    assert "DIFFERS with the server, 16 at once: 0 of 16 decisions the same" in done.stdout


def _same(answer: list[Any], expected: list[Any]) -> bool:
    """The same labels in order, and scores but for what the size of a batch moves."""
    pairs = zip(answer, expected, strict=True)
    return all(a["label"] == e["label"] and abs(a["score"] - e["score"]) < 1e-4 for a, e in pairs)


def _change(
    store: Path, source: Path, version: str, name: str, change: Callable[[bytes], bytes]
) -> None:
    """A copy of an archive under another version, one file of it changed, nothing re-hashed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(store / f"m-{version}.mar", "w") as new:
        for member in old.namelist():
            data = old.read(member)
            new.writestr(member, change(data) if member == name else data)


def test_damaged_archives_are_refused_and_status_says_why(
    archives: Path, make_home: Callable[[], Path]
) -> None:
    home = make_home()
    source = archives / f"{MODEL}-1.0.mar"
    with zipfile.ZipFile(source) as archive:
        bundle = Bundle.parse(archive.read("marsmith.json").decode())
    one, two = (f'"{label}"'.encode() for label in bundle.labels[3:5])
    swap = b",\n  ".join([one, two]), b",\n  ".join([two, one])
    flipped = lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]  # noqa: E731
    _change(home / "model-store", source, "1", "model.pt", flipped)
    with TorchServe(home) as server:
        (status,) = server.wait_ready(120)
        assert status.failed is not None
        assert "model.pt was changed after the build" in status.failed
    (home / "model-store/m-1.mar").unlink()
    _change(home / "model-store", source, "1", "marsmith.json", lambda data: data.replace(*swap))
    with TorchServe(home) as server:
        (status,) = server.wait_ready(120)
        assert status.failed is not None
        assert "marsmith.json was changed after the build" in status.failed
