"""A real archive in a worker: every request of a batch is answered, or fails, by itself."""

from __future__ import annotations

import base64
import copy
import gc
import json
import logging
import os
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from handlers import device, hold, pictures, plugins
from handlers.errors import BadRequest, TooLarge
from handlers.inputs import ImageInput
from handlers.metrics import BATCH_REQUESTS, ERRORS, Metric, Publisher
from handlers.pictures import Picture
from handlers.runtimes import Array, Arrays
from handlers.tasks.image_classification import ImageClassification


def body(data: bytes, **headers: str) -> tuple[dict[str, Any], dict[str, str]]:
    return {"body": bytearray(data)}, {name.replace("_", "-"): v for name, v in headers.items()}


def document(**fields: Any) -> tuple[dict[str, Any], dict[str, str]]:
    return {"body": fields}, {}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def handler(worker: Any) -> Iterator[ImageClassification]:
    """The worker's handler, whose model a test may replace."""
    model = worker.handler.model
    yield worker.handler
    worker.handler.model = model


# Batches -----------------------------------------------------------------------------------


def test_the_sample_digits_are_recognised(worker: Any, digits: dict[str, bytes]) -> None:
    replies = worker.ask(*(body(data) for data in list(digits.values())[:8]))
    assert [reply.json()[0]["label"] for reply in replies] == list(digits)[:8]
    for reply in replies:
        assert (reply.status, reply.media_type) == (200, "application/json")
        scores = [each["score"] for each in reply.json()]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == 3


def test_three_broken_pictures_of_eight_fail_alone(worker: Any, digits: dict[str, bytes]) -> None:
    broken = {1: (b"no picture", 415), 4: (digits["4"][:-60], 422), 6: (b"", 415)}
    sent = [broken[i][0] if i in broken else digits[str(i)] for i in range(8)]
    replies = worker.ask(*map(body, sent))
    for index, reply in enumerate(replies):
        assert reply.media_type == "application/json"
        if index in broken:
            assert reply.status == broken[index][1]
            error = reply.json()
            assert error["code"] == reply.status
            assert error["type"] in ("UnsupportedPicture", "BrokenPicture")
            assert error["message"]
        else:
            assert reply.status == 200
            assert reply.json()[0]["label"] == str(index)


def test_a_batch_of_nothing_but_errors_is_answered(worker: Any) -> None:
    replies = worker.ask(body(b"one"), body(b"two"))
    assert [reply.status for reply in replies] == [415, 415]


def test_an_answer_does_not_depend_on_its_batch(worker: Any, digits: dict[str, bytes]) -> None:
    alone = [worker.ask(body(data))[0].json() for data in digits.values()]
    together = [reply.json() for reply in worker.ask(*map(body, digits.values()))]
    for one, other in zip(alone, together, strict=True):
        assert one[0]["label"] == other[0]["label"]
        assert one[0]["score"] == pytest.approx(other[0]["score"], abs=1e-5)


def test_mixed_sizes_are_grouped_and_their_order_restored(handler: ImageClassification) -> None:
    shapes = []

    def sizes(images: Array) -> Arrays:
        shapes.append(images.shape)
        return (images[:, 0, 0, 0].astype(np.float32),)

    handler.model = sizes
    wanted = [(4, 5), (6, 5), (4, 5), (4, 5), (6, 5), (9, 9)]
    arrays = [np.full((*shape, 1), i, np.uint8) for i, shape in enumerate(wanted)]
    outputs = handler.inference(arrays)
    assert [float(output[0]) for output in outputs] == [0, 1, 2, 3, 4, 5]
    assert sorted(shapes) == [(1, 9, 9, 1), (2, 6, 5, 1), (3, 4, 5, 1)]


def test_groups_run_side_by_side_where_the_runtime_has_streams(
    handler: ImageClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=10)

    def model(images: Array) -> Arrays:
        both.wait()
        return (images[:, 0, 0, :1],)

    handler.model = model
    monkeypatch.setattr(handler, "model_streams", 2)
    with ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(handler, "pool", pool)
        found = handler.inference([np.full((4, 4, 3), i, np.uint8) for i in range(2)])
    assert found == [(0,), (1,)]


def test_no_call_has_more_pictures_than_the_artifact_takes(handler: ImageClassification) -> None:
    lengths = []

    def count(images: Array) -> Arrays:
        lengths.append(len(images))
        return (images[:, 0, 0, 0].astype(np.float32),)

    handler.model = count
    outputs = handler.inference([np.full((2, 2, 1), i, np.uint8) for i in range(19)])
    assert [float(output[0]) for output in outputs] == list(range(19))
    assert sorted(lengths) == [3, 8, 8]


# What a request may say --------------------------------------------------------------------


@pytest.mark.parametrize("way", ["field", "header", "json", "instances", "parameters"])
def test_an_option_counts_however_it_comes(worker: Any, digits: dict[str, bytes], way: str) -> None:
    data = digits["7"]
    (reply,) = worker.ask(
        {
            "field": ({"data": data, "top_k": b"2"}, {}),
            "header": body(data, X_Marsmith_Top_K="2"),
            "json": document(data=b64(data), parameters={"top_k": 2}),
            "instances": document(instances=[{"b64": b64(data)}], parameters={"top_k": 2}),
            "parameters": ({"data": data, "parameters": b'{"top_k": 2}'}, {}),
        }[way]
    )
    answer = reply.json()["predictions"][0] if way == "instances" else reply.json()
    assert answer[0]["label"] == "7"
    assert len(answer) == 2


def test_options_of_one_request_are_not_those_of_another(
    worker: Any, digits: dict[str, bytes]
) -> None:
    replies = worker.ask(
        body(digits["1"], X_Marsmith_Top_K="1"),
        body(digits["2"]),
        body(digits["3"], X_Marsmith_Top_K="9"),
    )
    assert [len(reply.json()) for reply in replies] == [1, 3, 9]


def test_more_answers_than_classes_gives_all_classes(worker: Any, digits: dict[str, bytes]) -> None:
    for many in ("11", "1000000", "9" * 30):
        (reply,) = worker.ask(body(digits["0"], X_Marsmith_Top_K=many))
        assert reply.status == 200
        assert {each["label"] for each in reply.json()} == set("0123456789")


def test_no_more_answers_than_classes_are_the_default(worker: Any) -> None:
    made = ImageClassification()
    for labels, default in ((["a", "b"], 2), (list("abcdefg"), 5)):
        made.bundle = replace(worker.handler.bundle, labels=labels, defaults={})
        assert made.options()[0].default == default


def test_a_label_that_only_one_answer_has_was_at_most_the_last_of_the_other() -> None:
    first, second = (
        [{"label": name, "score": score} for name, score in scores]
        for scores in ((("a", 0.5), ("b", 0.2)), (("a", 0.45), ("c", 0.21)))
    )
    found = ImageClassification().compare(first, second)
    assert (found.same, found.score) == (True, pytest.approx(0.05))
    # As ImageNet's cranes.
    first, second = (
        [{"label": "crane", "score": score}, {"label": "crane", "score": 0.1}]
        for score in (0.6, 0.4)
    )
    assert ImageClassification().compare(first, second).score == pytest.approx(0.2)


def test_instances_are_answered_as_a_list(worker: Any, digits: dict[str, bytes]) -> None:
    many, one = worker.ask(
        document(instances=[{"b64": b64(digits[name])} for name in "314"]),
        document(instances=[{"b64": b64(digits["5"])}]),
    )
    assert [answer[0]["label"] for answer in many.json()["predictions"]] == ["3", "1", "4"]
    assert [answer[0]["label"] for answer in one.json()["predictions"]] == ["5"]


def test_one_broken_instance_fails_its_request_and_no_other(
    worker: Any, digits: dict[str, bytes]
) -> None:
    mixed, good = worker.ask(
        document(instances=[{"b64": b64(digits["3"])}, {"b64": b64(b"no picture")}]),
        body(digits["8"]),
    )
    assert (mixed.status, mixed.json()["type"]) == (415, "UnsupportedPicture")
    assert good.json()[0]["label"] == "8"


@pytest.mark.parametrize(
    ("fields", "headers"),
    [({"topk": b"3"}, {}), ({}, {"X-Marsmith-Topk": "3"}), ({"parameters": b'{"topk": 3}'}, {})],
)
def test_an_unknown_option_is_400_listing_the_accepted_ones(
    worker: Any, digits: dict[str, bytes], fields: dict[str, Any], headers: dict[str, str]
) -> None:
    wrong, right = worker.ask(({"data": digits["1"], **fields}, headers), body(digits["1"]))
    assert (wrong.status, wrong.media_type) == (400, "application/json")
    error = wrong.json()
    assert error["code"] == 400
    assert error["type"] == "BadRequest"
    assert "'topk'" in error["message"]
    assert error["accepted"]["top_k"] == {
        "type": "integer",
        "default": 3,
        "minimum": 1,
        "help": "how many labels to answer with",
    }
    assert right.status == 200


@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg"])
def test_an_answer_can_be_a_picture(worker: Any, digits: dict[str, bytes], media_type: str) -> None:
    drawn, plain = worker.ask(body(digits["6"], Accept=media_type), body(digits["6"]))
    assert (drawn.status, drawn.media_type) == (200, media_type)
    with Image.open(BytesIO(drawn.body)) as picture:
        assert picture.format == media_type.partition("/")[2].upper()
        picture.load()
    assert plain.media_type == "application/json"
    assert plain.json()[0]["label"] == "6"


def test_an_error_is_json_even_when_a_picture_was_asked_for(worker: Any) -> None:
    (reply,) = worker.ask(body(b"no picture", Accept="image/png"))
    assert (reply.status, reply.media_type) == (415, "application/json")
    assert reply.json()["code"] == 415


def test_what_cannot_be_accepted_is_406(worker: Any, digits: dict[str, bytes]) -> None:
    (reply,) = worker.ask(body(digits["6"], Accept="text/html"))
    assert (reply.status, reply.json()["type"]) == (406, "NotAcceptable")


def test_too_many_pictures_are_413(worker: Any, digits: dict[str, bytes]) -> None:
    many = [{"b64": b64(digits["1"])}] * 33
    wrong, right = worker.ask(document(instances=many), document(instances=many[:32]))
    assert (wrong.status, wrong.json()["max_pictures"]) == (413, 32)
    assert len(right.json()["predictions"]) == 32


def test_half_a_surrogate_pair_harms_no_neighbour(worker: Any, digits: dict[str, bytes]) -> None:
    replies = worker.ask(({"body": "\ud800"}, {}), body(digits["1"]))
    assert [reply.status for reply in replies] == [415, 200]


# Describe ----------------------------------------------------------------------------------


def test_a_describe_call_says_what_the_model_is(worker: Any) -> None:
    (reply,) = worker.ask(({}, {"describe": "True"}))
    assert (reply.status, reply.media_type) == (200, "application/json")
    described = reply.json()
    assert described["model"] == "lenet5_digits"
    assert described["version"] == "1.0"
    assert described["task"] == "image-classification"
    assert described["labels"] == list("0123456789")
    assert described["options"]["top_k"]["default"] == 3
    assert described["input"]["max_pictures"] == 32
    assert described["provenance"]["licence"] == "Apache-2.0"


def test_a_describe_header_affects_its_own_row_alone(worker: Any, digits: dict[str, bytes]) -> None:
    for at in range(3):
        batch = [body(digits[name]) for name in "123"]
        batch[at] = (batch[at][0], {"describe": "True"})
        replies = worker.ask(*batch)
        assert [reply.status for reply in replies] == [200, 200, 200]
        for index, reply in enumerate(replies):
            if index == at:
                assert reply.json()["model"] == "lenet5_digits"
            else:
                assert reply.json()[0]["label"] == "123"[index]


def test_a_worker_is_held_on_a_describe_call_alone_and_with_no_neighbour(
    worker: Any, digits: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(hold, "SECONDS", 0.05)
    asked, described = hold.asked(tmp_path, os.getpid()), ({}, {"describe": "True"})
    asked.touch()
    replies = worker.ask(described, body(digits["3"]))
    assert [reply.status for reply in replies] == [200, 200]
    assert asked.exists()
    worker.ask(described)
    assert not asked.exists()


def test_explanations_are_not_offered(worker: Any, digits: dict[str, bytes]) -> None:
    replies = worker.ask(body(digits["1"], explain="True"), body(digits["1"]))
    assert [reply.status for reply in replies] == [400, 200]


# A model that fails ------------------------------------------------------------------------


def hates(handler: ImageClassification, data: bytes, error: Exception) -> None:
    """Let the handler's model raise ``error`` for batches with this picture."""
    model, hated = handler.model, handler.preprocess(Image.open(BytesIO(data)))

    def picky(images: Array) -> Arrays:
        if any(np.array_equal(image, hated) for image in images):
            raise error
        return model(images)

    handler.model = picky


def test_a_model_that_raises_for_one_picture_fails_only_that_one(
    handler: ImageClassification, worker: Any, digits: dict[str, bytes]
) -> None:
    hates(handler, digits["4"], MemoryError("CUDA out of memory, secrets of the host"))
    replies = worker.ask(*(body(digits[name]) for name in "345"))
    assert [reply.status for reply in replies] == [200, 500, 200]
    assert [replies[i].json()[0]["label"] for i in (0, 2)] == ["3", "5"]
    assert replies[1].json() == {
        "code": 500,
        "type": "InferenceError",
        "message": "the model failed on this picture: MemoryError",
    }


class Activations:
    """What a model holds while it runs."""


def test_what_a_failed_call_held_is_free_before_the_next_one(
    handler: ImageClassification,
    worker: Any,
    digits: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, hated = handler.model, handler.preprocess(Image.open(BytesIO(digits["4"])))
    held: list[weakref.ref[Activations]] = []
    alive = []

    def out_of_memory(images: Array) -> Arrays:
        activations = Activations()
        held.append(weakref.ref(activations))
        alive.append(sum(each() is not None for each in held))
        if len(images) > 1 or np.array_equal(images[0], hated):
            raise MemoryError("out of memory")
        return model(images)

    handler.model = out_of_memory
    # pytest keeps what is logged, with its tracebacks.
    monkeypatch.setattr(logging.getLogger("handlers.task"), "disabled", True)
    replies = worker.ask(*(body(digits[name]) for name in "345"))
    assert [reply.status for reply in replies] == [200, 500, 200]
    assert alive == [1] * 4


def test_a_picture_that_the_runtime_does_not_take_is_told_so(
    handler: ImageClassification, worker: Any, digits: dict[str, bytes]
) -> None:
    words = "axis 1 of the pixels is 65, and the engine takes 1 to 64"
    hates(handler, digits["4"], TooLarge(words))
    replies = worker.ask(*(body(digits[name]) for name in "345"))
    assert [reply.status for reply in replies] == [200, 413, 200]
    assert "the engine takes 1 to 64" in replies[1].json()["message"]


def test_a_worker_whose_gpu_is_lost_ends_so_that_another_one_starts(
    handler: ImageClassification,
    worker: Any,
    digits: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(images: Array) -> Arrays:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def end(status: int) -> None:
        raise SystemExit(status)

    handler.model, handler.place, handler.initialized = fails, "cuda:0", True
    # Stands in for a GPU.
    monkeypatch.setattr(device, "is_lost", lambda place: place == "cuda:0")
    monkeypatch.setattr("os._exit", end)
    with pytest.raises(SystemExit):
        worker.ask(body(digits["3"]), body(digits["4"]))
    # A build or a verification goes on, and says what failed.
    handler.initialized = False
    assert [reply.status for reply in worker.ask(body(digits["3"]), body(digits["4"]))] == [500] * 2


def test_pixels_that_torch_resizes_need_torch_whatever_the_runtime(worker: Any) -> None:
    bundle = replace(worker.handler.bundle, runtime="onnx")
    for backend, needs in (("pil", False), ("tensor", True)):
        given = ImageInput(resize=32, backend=backend)
        assert ImageClassification.needs_torch(replace(bundle, input=given)) is needs


def test_torch_computes_in_as_many_threads_as_the_archive_says(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Idle(plugins.load_runtime("eager")):  # type: ignore[misc]
        """Sets no threads by itself, as those do not that compute without torch."""

        def __init__(self, *_: Any) -> None:
            pass

    before = torch.get_num_threads()
    monkeypatch.setattr("handlers.task.load_runtime", lambda _: Idle)
    monkeypatch.setattr(device, "threads", lambda _: before + 1)
    try:
        ImageClassification().bind(
            worker.handler.bundle, Path(worker.context.system_properties["model_dir"])
        )
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_request_that_cannot_even_be_read_fails_alone(
    worker: Any, digits: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(data: bytes, *given: Any) -> Any:
        if data == b"?":
            raise OverflowError("never thought of")
        return original(data, *given)

    original = pictures.read
    monkeypatch.setattr(pictures, "read", read)
    bad, good = worker.ask(body(b"?"), body(digits["3"]))
    assert (bad.status, bad.json()["type"]) == (500, "InferenceError")
    assert (good.status, good.json()[0]["label"]) == (200, "3")


def test_instances_share_the_pixels_of_one_request(
    worker: Any, digits: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = replace(worker.handler.bundle.limits, max_pixels=5000)
    monkeypatch.setattr(worker.handler, "bundle", replace(worker.handler.bundle, limits=limits))
    one, two = [{"b64": b64(digits["3"])}], [{"b64": b64(digits["3"])}] * 2
    good, bad = worker.ask(document(instances=one), document(instances=two))
    assert good.status == 200
    assert bad.status == 413
    assert "8192 pixels to decode; the limit of one request is 5000" in bad.json()["message"]


def test_instances_share_the_pixels_that_they_would_become(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """32 of 1x236 pixels are 3 KB, and would be 6 GB."""
    bundle = replace(worker.handler.bundle, input=ImageInput(resize=520))
    monkeypatch.setattr(worker.handler, "bundle", bundle)
    file = BytesIO()
    Image.new("L", (1, 236)).save(file, "PNG")
    (reply,) = worker.ask(document(instances=[{"b64": b64(file.getvalue())}] * 2))
    assert reply.status == 413
    assert "of this request (2) would become 127628800 pixels" in reply.json()["message"]


@pytest.mark.parametrize("bad", [b"?", b"\x89PNG\r\n\x1a\n"])
def test_a_failed_request_keeps_no_picture(
    worker: Any, digits: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, bad: bytes
) -> None:
    """Without a collection of cyclic garbage, for gigabytes may be in few objects."""
    decoded = []

    def read(*given: Any) -> Any:
        picture = original(*given)
        decoded.append(weakref.ref(picture))
        return picture

    original = pictures.read
    monkeypatch.setattr(pictures, "read", read)
    gc.disable()
    try:
        instances = [{"b64": b64(data)} for data in (digits["3"], bad)]
        (reply,) = worker.ask(document(instances=instances))
        assert reply.status in (415, 422)
        assert [picture() for picture in decoded] == [None]
    finally:
        gc.enable()


def test_a_picture_drawn_on_is_whole_no_longer_than_that(
    worker: Any, digits: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its batch may have more to draw, and each would stay twice until all are."""
    kept: list[Picture] = []
    whole: list[weakref.ref[Image.Image]] = []
    read, decode = pictures.read, pictures.decode

    def kept_read(*given: Any) -> Picture:
        kept.append(read(*given))
        return kept[-1]

    def watched(*given: Any) -> Image.Image:
        image = decode(*given)
        whole.append(weakref.ref(image))
        return image

    monkeypatch.setattr(pictures, "read", kept_read)
    monkeypatch.setattr(pictures, "decode", watched)
    (reply,) = worker.ask(body(digits["3"], Accept="image/png"))
    assert (reply.status, len(kept), len(whole)) == (200, 1, 2)
    assert [image() for image in whole] == [None, None]


def test_answers_to_grpc_say_that_nothing_follows(worker: Any, digits: dict[str, bytes]) -> None:
    """For TorchServe ends a worker that does not, when StreamPredictions was called."""
    worker.ask(body(digits["3"]), body(b"?"), body(digits["3"], host="x"), body(b"?", host="x"))
    told = [worker.context.get_response_headers(i).get("ts_stream_next") for i in range(4)]
    assert told == ["false", "false", None, None]


def test_outputs_that_are_no_numbers_are_500_for_their_request(
    handler: ImageClassification, worker: Any, digits: dict[str, bytes]
) -> None:
    model = handler.model

    def broken(images: Array) -> Arrays:
        (scores,) = model(images)
        scores = np.array(scores)
        scores[1, 0] = np.nan
        return (scores,)

    handler.model = broken
    replies = worker.ask(*(body(digits[name]) for name in "345"))
    assert [reply.status for reply in replies] == [200, 500, 200]
    assert "not finite" in replies[1].json()["message"]


def test_requests_are_counted_and_failures_by_their_status(
    handler: ImageClassification,
    worker: Any,
    digits: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[str, float]] = []
    requests: list[float] = []

    class Told(Publisher):
        def add(self, metric: Metric, value: float, **labels: str) -> None:
            if metric is ERRORS:
                told.append((labels["Status"], value))
            if metric is BATCH_REQUESTS:
                requests.append(value)

    monkeypatch.setattr(handler, "_publisher", lambda _: Told(False, "m", "1.0"))
    webp = body(digits["3"], accept="image/webp")
    worker.ask(body(b"?"), body(digits["3"]), webp, body(b"?"), body(b"", describe="True"))
    assert sorted(told) == [("406", 1), ("415", 2)]
    assert requests == [4], "a describe call is none"


def test_an_answer_that_is_no_json_is_500_for_its_request(
    handler: ImageClassification,
    worker: Any,
    digits: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter([[], [{"score": float("nan")}], []])
    monkeypatch.setattr(handler, "postprocess", lambda *_: next(answers))
    replies = worker.ask(*(body(digits[name]) for name in "345"))
    assert [reply.status for reply in replies] == [200, 500, 200]
    assert replies[1].json()["message"] == "this model could not answer: ValueError"


@pytest.mark.parametrize("step", ["preprocess", "postprocess", "draw"])
def test_a_step_that_raises_for_one_picture_fails_only_that_one(
    handler: ImageClassification,
    worker: Any,
    digits: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    original = getattr(handler, step)
    calls = 0

    def fails_second(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ValueError("not this one")
        return original(*arguments)

    monkeypatch.setattr(handler, step, fails_second)
    replies = worker.ask(*(body(digits[name], Accept="image/png") for name in "345"))
    assert [reply.status for reply in replies] == [200, 500, 200]
    assert replies[1].json()["type"] == "InferenceError"


# The handler itself ------------------------------------------------------------------------


def test_nothing_of_a_request_is_left_on_the_handler(worker: Any, digits: dict[str, bytes]) -> None:
    def state() -> tuple[set[str], bytes]:
        values = {
            k: v for k, v in vars(worker.handler).items() if k not in ("model", "context", "pool")
        }
        return set(vars(worker.handler)), repr(sorted(copy.deepcopy(values).items())).encode()

    before = state()
    worker.ask(
        body(digits["1"]),
        body(b"broken"),
        body(digits["2"], Accept="image/png", X_Marsmith_Top_K="7"),
        document(instances=[{"b64": b64(digits["5"])}]),
        ({}, {"describe": "True"}),
    )
    assert state() == before


def test_predict_is_preprocess_model_postprocess(worker: Any, digits: dict[str, bytes]) -> None:
    handler = worker.handler
    picture = Image.open(BytesIO(digits["9"])).convert("RGB")
    outputs = handler.model(np.stack([handler.preprocess(picture)]))
    one = handler.postprocess(tuple(output[0] for output in outputs), picture, {"top_k": 3})
    assert handler.answer([picture]) == [one]
    assert handler.answer([picture], top_k=1) == [one[:1]]


def test_torchserves_service_sends_each_request_its_own_status(
    worker: Any, digits: dict[str, bytes]
) -> None:
    import ts
    from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
    from ts.service import Service

    from marsmith.smoke_worker import statuses

    metrics = MetricsCacheYamlImpl(str(Path(ts.__file__).parent / "configs/metrics.yaml"))
    metrics.initialize_cache()
    metrics.model_name = worker.context.model_name
    context = worker.context
    service = Service(
        context.model_name,
        context.system_properties["model_dir"],
        context.manifest,
        worker.service.handle,
        None,
        8,
        True,
        metrics,
    )
    service.set_cl_socket(None)

    def request(name: str, data: bytes) -> dict[str, Any]:
        parameter = {"name": "body", "contentType": "image/png", "value": bytearray(data)}
        return {"requestId": name.encode(), "headers": [], "parameters": [parameter]}

    sent = [request("good", digits["1"]), request("bad", b"?"), request("fine", digits["2"])]
    assert statuses(service.predict(sent)) == {"good": 200, "bad": 415, "fine": 200}


def test_a_refused_request_has_compact_json(worker: Any) -> None:
    error = BadRequest("what came", accepted=[1])
    assert error.body() == b'{"code":400,"type":"BadRequest","message":"what came","accepted":[1]}'
    (reply,) = worker.ask(body(b"?"))
    assert reply.body == json.dumps(reply.json(), separators=(",", ":")).encode()
