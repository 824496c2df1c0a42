from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from handlers.errors import ServerError
from marsmith.commands.serve import _sample
from marsmith.environment import temp_folder
from marsmith.server import TorchServe


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "config.properties").write_text("model_store=store\nmax_request_size=1\n")
    (tmp_path / "logs").mkdir()
    yield tmp_path
    shutil.rmtree(temp_folder(tmp_path))


def test_settings_are_overridden_and_the_store_is_absolute(home: Path) -> None:
    server = TorchServe(home, config={"max_request_size": "2"})
    assert server.properties == {"model_store": str(home / "store"), "max_request_size": "2"}
    assert TorchServe(home, model_store=home / "other").model_store == home / "other"


def test_no_store_says_what_to_do(home: Path) -> None:
    with pytest.raises(ServerError, match=r"no model store .*/store: build a model first"):
        TorchServe(home).start()


def test_the_last_lines_are_those_that_tell_of_trouble(home: Path) -> None:
    server = TorchServe(home)
    assert server.last_lines().startswith("no output")
    console = home / "logs" / "console.log"
    console.write_text("")
    assert server.last_lines() == "it printed nothing"
    console.write_text("one\ntwo\n")
    assert server.last_lines(1) == "two"
    trouble = "x.BindException: Address already in use\n\tat x.y(Z.java)\nCaused by: q\nthe end\n"
    console.write_text(trouble)
    assert server.last_lines() == "x.BindException: Address already in use | Caused by: q"


def test_stop_without_start_leaves_other_servers_alone(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marsmith.server.stop_running", lambda _: pytest.fail("stopped"))
    TorchServe(home).stop()


def test_the_sample_is_of_the_models_own_folder(home: Path) -> None:
    assert _sample(home, "m") == "PICTURE"
    for name in ("a/1.png", "b/2.jpg"):
        (home / "samples" / name).parent.mkdir(parents=True)
        (home / "samples" / name).touch()
    assert _sample(home, "m") == "samples/a/1.png"
    (home / "models").mkdir()
    (home / "models" / "m.yaml").write_text("samples: samples/b\n")
    assert _sample(home, "m") == "samples/b/2.jpg"
