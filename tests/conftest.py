"""What several test folders share: the project's place, one built archive, and a worker."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

import marsmith  # noqa: F401  # first of all: it says how the threads of torch wait

# They keep what they run from reporting to its makers: so do the tests.
from handlers.runtimes import onnx, openvino  # noqa: F401
from marsmith.locks import alone

PROJECT = Path(__file__).parents[1]

# The machine is shared: a slow moment is no defect. What fails says how to repeat it.
settings.register_profile("marsmith", deadline=None, database=None, print_blob=True)
settings.load_profile("marsmith")


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # So a shell starts what runs in the background, and all that tests start would ignore it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Hypothesis would make a folder in the work tree, and does so before the first fixture.
    folder = TemporaryDirectory(prefix="marsmith-hypothesis-")
    config.add_cleanup(folder.cleanup)
    set_hypothesis_home_dir(folder.name)
    # They leave files open: their version at import, ts its metrics.
    files = ".*(packages.(ts|model_archiver).|marsmith.metrics.yaml)"
    for category in ("ResourceWarning", "pytest.PytestUnraisableExceptionWarning"):
        config.addinivalue_line("filterwarnings", f"ignore:{files}:{category}")


def pytest_unconfigure() -> None:
    # Builds set aside what they import for good, and triton would call that a leak at the end.
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _log_levels() -> None:
    """Every test finds the levels of a fresh process: libraries change them in others."""
    logging.disable(logging.NOTSET)
    logging.getLogger().setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def together(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all processes of this run share."""
    base = tmp_path_factory.getbasetemp()
    # One of several processes has a folder of its own in that of the run.
    return base.parent if hasattr(pytestconfig, "workerinput") else base


@pytest.fixture(scope="session", autouse=True)
def _cache(together: Path) -> Iterator[None]:
    """What runtimes compile is kept for this run of the tests, and not in the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARSMITH_CACHE", str(together / "cache"))
        yield


@dataclass(frozen=True)
class Reply:
    """What TorchServe sends back for one request of a batch."""

    status: int
    media_type: str | None
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Worker:
    """A loaded archive, called with what TorchServe's protocol makes of requests.

    ``metrics`` is TorchServe's cache of metrics, which logs what a worker prints.
    """

    def __init__(self, folder: Path, metrics: Any = None) -> None:
        from ts.context import Context

        from handlers.entry import Service

        manifest = json.loads((folder / "MAR-INF/MANIFEST.json").read_text())
        self.context = Context(
            manifest["model"]["modelName"],
            str(folder),
            manifest,
            8,
            None,
            "0.12.0",
            metrics=metrics,
        )
        self.service = Service()
        self.service.initialize(self.context)

    @property
    def handler(self) -> Any:
        return self.service._handler

    def ask(self, *requests: tuple[Mapping[str, Any], Mapping[str, str]]) -> list[Reply]:
        """Replies to a batch of (fields, headers)."""
        from ts.service import Service

        batch = [
            {
                "requestId": b"%d" % number,
                "headers": [
                    {"name": name.encode(), "value": value.encode()}
                    for name, value in headers.items()
                ],
                "parameters": [
                    {"name": name, "contentType": "", "value": value}
                    for name, value in fields.items()
                ],
            }
            for number, (fields, headers) in enumerate(requests)
        ]
        processors, rows, ids = Service.retrieve_data_for_inference(batch)
        self.context.request_ids, self.context.request_processor = ids, processors
        bodies = self.service.handle(rows, self.context)
        assert len(bodies) == len(rows)
        return [
            Reply(
                self.context.get_response_status(index)[0],
                self.context.get_response_content_type(index),
                body,
            )
            for index, body in enumerate(bodies)
        ]


@pytest.fixture(scope="session")
def project() -> Path:
    """The project folder that specs are relative to."""
    return PROJECT


Shared = Callable[[str, Callable[[Path], object]], Path]
"""(name, what fills a folder) -> that folder, which tests must leave as it is."""


@pytest.fixture(scope="session")
def shared(together: Path) -> Shared:
    """Makes a folder once for all processes of this run: whoever needs it first fills it."""

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = together / name, together / f"{name}.done"
        with alone(done):
            if not done.stat().st_size:
                # Left by whoever could not fill it.
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                done.write_text("filled")
        return folder

    return make


@pytest.fixture(scope="session")
def lenet5(shared: Shared) -> Path:
    """The archive of models/lenet5_digits.yaml, built once with every stage."""
    from marsmith import build, spec

    def fill(store: Path) -> None:
        model = spec.load(PROJECT / "models/lenet5_digits.yaml")
        build.build(model, PROJECT, store, tell=lambda stage: None)

    [archive] = shared("lenet5", fill).glob("*.mar")
    return archive


@pytest.fixture
def unpacked(lenet5: Path, tmp_path: Path) -> Path:
    """The archive unpacked into a folder that a test may damage."""
    from marsmith.archive import unpack

    folder = tmp_path / "unpacked"
    unpack(lenet5, folder)
    return folder


@pytest.fixture(scope="session")
def worker(lenet5: Path, tmp_path_factory: pytest.TempPathFactory) -> Worker:
    """A worker with the lenet5 archive; tests must leave it as it is."""
    from marsmith.archive import unpack

    folder = tmp_path_factory.mktemp("model")
    unpack(lenet5, folder)
    return Worker(folder)


@pytest.fixture(scope="session")
def load_worker() -> type[Worker]:
    """Loads an unpacked archive as a worker does."""
    return Worker


@pytest.fixture(scope="session")
def digits() -> dict[str, bytes]:
    """The sample pictures by the digit they show."""
    return {path.stem: path.read_bytes() for path in sorted((PROJECT / "samples/digits").glob("*"))}
