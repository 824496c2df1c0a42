"""Plugins are found by their files' names, and one that breaks its contract is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handlers import plugins, runtimes
from handlers.bundle import Bundle
from handlers.errors import InferenceError, LoadError, PluginError
from handlers.inputs import ImageInput
from handlers.runtimes import Runtime
from handlers.task import TaskHandler
from handlers.tasks.image_classification import ImageClassification
from marsmith import cli

ONE = """
from handlers.runtimes.eager import Eager
from handlers.runtimes import Runtime

class Mine(Runtime):
    suffix = ".mine"

    def __init__(self, path, device, options):
        pass

    def __call__(self, *arrays):
        return arrays
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the plugin folders that a test may add files to."""
    (tmp_path / "runtimes").mkdir()
    (tmp_path / "runtimes/__init__.py").touch()
    monkeypatch.setattr(plugins, "__file__", str(tmp_path / "plugins.py"))
    monkeypatch.setattr(runtimes, "__path__", [str(tmp_path / "runtimes")])
    return tmp_path / "runtimes"


@pytest.fixture(autouse=True)
def forget() -> None:
    for name in ("handlers.runtimes.my_own", "handlers.runtimes.broken"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("kind", ["tasks", "runtimes"])
def test_the_files_of_a_folder_are_the_names(kind: str) -> None:
    files = (Path(plugins.__file__).parent / kind).glob("*.py")
    expected = sorted(f.stem.replace("_", "-") for f in files if f.stem != "__init__")
    assert plugins.names(kind) == expected
    assert expected


def test_the_class_in_the_file_is_loaded() -> None:
    assert issubclass(plugins.load_runtime("eager"), Runtime)
    assert issubclass(plugins.load_task("image-classification"), TaskHandler)


@pytest.mark.parametrize("name", ["", "tvm", "Eager", "../eager", "eager.py", "__init__"])
def test_an_unknown_name_lists_the_accepted_ones(name: str) -> None:
    with pytest.raises(PluginError, match="no runtime .*: accepted are .*eager.*torchscript"):
        plugins.load_runtime(name)
    with pytest.raises(PluginError, match="no task .*: accepted are .*image-classification"):
        plugins.load_task(name)
    assert issubclass(PluginError, LoadError)


def test_a_new_file_is_a_new_plugin(folder: Path) -> None:
    (folder / "my_own.py").write_text(ONE)
    assert plugins.names("runtimes") == ["my-own"]
    assert plugins.load_runtime("my-own").suffix == ".mine"


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("", 0),
        ("from handlers.runtimes.eager import Eager", 0),
        (ONE + ONE.replace("Mine", "B"), 2),
    ],
)
def test_a_file_without_exactly_one_class_is_refused(folder: Path, source: str, count: int) -> None:
    from handlers.runtimes import eager

    assert eager.Eager
    (folder / "broken.py").write_text(source)
    with pytest.raises(PluginError, match=f"defines {count} subclasses of Runtime: exactly one"):
        plugins.load_runtime("broken")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_package_anywhere", "no_such_package_anywhere"),
        ("1 / 0", "division by zero"),
        ("def", "SyntaxError"),
        (ONE.replace("__call__", "call"), "Mine lacks __call__"),
        (ONE.replace("    suffix =", "    prefix ="), "Mine lacks suffix"),
    ],
)
def test_a_file_that_breaks_the_contract_says_how(folder: Path, source: str, words: str) -> None:
    (folder / "broken.py").write_text(source)
    with pytest.raises(PluginError, match=rf"handlers\.runtimes\.broken.*{words}"):
        plugins.load_runtime("broken")


def failing(kind: str) -> Any:
    """A function that raises in a line of a plug-in's file."""
    file = Path(plugins.__file__).parent / kind / "my_own.py"
    code = "\n\ndef fail(*_, **__):\n    raise IndexError('no such\\nbox')"
    names: dict[str, Any] = {}
    exec(compile(code, str(file), "exec"), names)
    return names["fail"]


@pytest.mark.parametrize("kind", ["tasks", "runtimes"])
def test_what_a_plugin_raises_is_one_line_with_its_place(kind: str) -> None:
    words = rf"^IndexError: no such box \(handlers/{kind}/my_own\.py:4\)$"
    with pytest.raises(PluginError, match=words), plugins.blamed():
        # Called by others, and calling others.
        list(map(failing(kind), [1]))


def test_what_the_pipeline_raises_and_errors_of_ours_stay_as_they_are() -> None:
    with pytest.raises(ZeroDivisionError), plugins.blamed():
        raise ZeroDivisionError
    with pytest.raises(LoadError, match="^ours$"), plugins.blamed():
        raise LoadError("ours")


def test_outside_a_request_a_task_says_what_it_failed_of() -> None:
    task = ImageClassification()
    task.bundle = Bundle("m", "1", "image-classification", "eager", "a", ["a"], ImageInput())
    task.model = lambda *arrays: (np.ones((len(arrays[0]), 1), np.float32),)
    picture = Image.new("RGB", (8, 8))
    assert task.drawn(picture).startswith(b"\x89PNG")
    place = r"IndexError: no such box \(handlers/tasks/my_own\.py:4\)$"
    asked = {"draw": task.drawn, "postprocess": lambda given: task.answer([given])}
    for step, ask in asked.items():
        setattr(task, step, failing("tasks"))
        with pytest.raises(InferenceError, match=f"^this model could not answer: {place}"):
            ask(picture)
    task.model = failing("runtimes")
    place = r"IndexError: no such box \(handlers/runtimes/my_own\.py:4\)$"
    with pytest.raises(InferenceError, match=f"^the model failed on this picture: {place}"):
        task.answer([picture])


def test_the_command_line_prints_that_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "group", failing("tasks"))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    told = "error: IndexError: no such box (handlers/tasks/my_own.py:4)\n"
    assert capsys.readouterr().err == told
