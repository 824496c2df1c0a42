"""The plug-ins of docs/extending.md work as they stand, each added with one file alone."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tiny import PROJECT

FILES = (
    "handlers/tasks/image_tagging.py",
    "handlers/runtimes/exported_program.py",
    "models/shapes_tags.yaml",
)
COPIED = (
    "benchmarks",
    "pyproject.toml",
    "handlers",
    "marsmith",
    "models",
    "samples",
    "weights",
    "training/networks",
    "tests/conftest.py",
    "tests/exports.py",
    "tests/contract",
    "tests/unit/test_independence.py",
)

# Asks the archive that is unpacked in the working folder what the command line names, as one batch.
ASK = """
import base64, json, sys
from pathlib import Path
from ts.context import Context, RequestProcessor
from handlers.entry import Service

requests = json.loads(sys.argv[1])
manifest = json.loads(Path("MAR-INF/MANIFEST.json").read_text())
context = Context("m", ".", manifest, len(requests), None, "test")
service = Service()
service.initialize(context)
context.request_processor = [RequestProcessor(each["headers"]) for each in requests]
rows = [{"body": bytearray(base64.b64decode(each["body"]))} for each in requests]
print(json.dumps([
    {
        "status": context.get_response_status(i)[0] or 200,
        "type": context.get_response_content_type(i),
        "body": base64.b64encode(bytes(answer)).decode(),
    }
    for i, answer in enumerate(service.handle(rows, context))
]))
"""


def _blocks() -> dict[str, str]:
    """The guide's code blocks that name their file in the first line, by that name."""
    text = (PROJECT / "docs/extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w+\n(# (\S+/\S+)\n.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return {name: block for block, name in blocks}


def _run(*arguments: str, folder: Path) -> str:
    """What Python prints in a folder that comes first in its path; fails with all of its output."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the guide's three files, each new, and nothing else changed."""
    copy = tmp_path_factory.mktemp("extended")
    ignored = shutil.ignore_patterns("__pycache__", "download")
    for name in COPIED:
        source, target = PROJECT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignored)
        elif source.exists():
            shutil.copy(source, target)
    for name, block in _blocks().items():
        with (copy / name).open("x", encoding="utf-8") as file:
            file.write(block)
    return copy


@pytest.fixture(scope="module")
def unpacked(extended: Path) -> Path:
    """The archive of the guide's model, built on the command line."""
    _run("-m", "marsmith", "build", "shapes_tags", folder=extended)
    with zipfile.ZipFile(extended / "model-store/shapes_tags-1.0.mar") as archive:
        archive.extractall(extended / "unpacked")
    return extended / "unpacked"


def test_the_guide_has_one_file_of_each_kind() -> None:
    assert sorted(_blocks()) == sorted(FILES)


def test_the_code_is_in_the_style_of_the_project(extended: Path) -> None:
    code = [name for name in FILES if name.endswith(".py")]
    _run("-m", "ruff", "format", "--check", *code, folder=extended)
    _run("-m", "ruff", "check", "--no-cache", *code, folder=extended)


def test_workers_without_need_of_torch_have_none_with_the_task_there(extended: Path) -> None:
    chosen = ("-p", "no:cacheprovider", "-k", "without_need_of_torch", "tests/unit")
    assert "2 passed" in _run("-m", "pytest", *chosen, folder=extended)


def test_the_command_line_lists_the_model(extended: Path) -> None:
    listing = _run("-m", "marsmith", "build", "--list", folder=extended)
    assert re.search(r"^shapes_tags +image-tagging +which of ten shapes", listing, re.MULTILINE)


def test_the_archive_is_what_the_model_file_says(unpacked: Path) -> None:
    bundle = json.loads((unpacked / "marsmith.json").read_text(encoding="utf-8"))
    assert (bundle["task"], bundle["runtime"]) == ("image-tagging", "exported-program")
    assert (bundle["artifact"], bundle["defaults"]) == ("model.pt2", {"threshold": 0.6})
    assert (unpacked / "model.pt2").is_file()
    # The network is in the graph, and its source is not needed to load it.
    assert str(PROJECT).encode() not in (unpacked / "model.pt2").read_bytes()


def _ask(unpacked: Path, *requests: tuple[bytes, dict[str, str]]) -> list[dict[str, Any]]:
    rows = [{"body": base64.b64encode(body).decode(), "headers": head} for body, head in requests]
    printed = _run("-P", "-c", ASK, json.dumps(rows), folder=unpacked)
    answers: list[dict[str, Any]] = json.loads(printed.splitlines()[-1])
    return [{**each, "body": base64.b64decode(each["body"])} for each in answers]


def test_the_archive_answers(unpacked: Path) -> None:
    star = (PROJECT / "samples/shapes/star.jpg").read_bytes()
    plain, all_tags, none, drawn, described = _ask(
        unpacked,
        (star, {}),
        (star, {"X-Marsmith-Threshold": "0"}),
        (star, {"x-marsmith-threshold": "1.5"}),
        (star, {"accept": "image/png"}),
        (b"", {"describe": "True"}),
    )
    answer = json.loads(plain["body"])
    assert answer["threshold"] == 0.6
    assert answer["tags"][0]["label"] == "star"
    assert len(answer["tags"]) + len(answer["rest"]) == 10
    assert len(json.loads(all_tags["body"])["tags"]) == 10
    assert none["status"] == 400
    assert json.loads(none["body"])["accepted"]["maximum"] == 1
    assert (drawn["status"], drawn["type"]) == (200, "image/png")
    assert drawn["body"].startswith(b"\x89PNG")
    assert json.loads(described["body"])["options"]["threshold"]["default"] == 0.6


def test_the_contract_tests_find_both_plugins_and_pass(extended: Path) -> None:
    names = ("image-tagging", "exported-program")
    chosen = ("-v", "-p", "no:cacheprovider", "-k", " or ".join(names), "tests/contract")
    output = _run("-m", "pytest", *chosen, folder=extended)
    for name in names:
        assert re.search(rf"{name}.* PASSED", output), output


FOREIGN = """
from pathlib import Path
import torch
from marsmith import own

torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.ones(1),)), "theirs.pt2")
Path("labels.txt").write_text("cat")
given = {"artifact": "theirs.pt2", "name": "theirs", "labels": "labels.txt"}
print(own.fields({**given, "task": "image-classification"}, Path(), Path())[0]["runtime"])
"""


def test_programs_that_others_exported_keep_their_runtime(extended: Path) -> None:
    assert _run("-c", FOREIGN, folder=extended) == "torch-compile\n"


TASK, RUNTIME = FILES[:2]


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        (
            TASK,
            "best = np.argsort(",
            "eager does not answer a sample: this model could not answer: IndexError: broken",
        ),
        (TASK, "wanted, found = (", "IndexError: broken"),
        (TASK, "rows = [(tag[", "this model could not answer: IndexError: broken"),
        (RUNTIME, "torch.set_num_threads(", "IndexError: broken"),
        (RUNTIME, "for node in program.graph", "IndexError: broken"),
    ],
    ids=["postprocess", "compare", "draw", "init", "export"],
)
def test_what_a_plugin_raises_stops_the_build_with_one_line_and_its_place(
    file: str, line: str, words: str, extended: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(extended, copy, ignore=shutil.ignore_patterns("unpacked", "model-store"))
    before, found, after = (copy / file).read_text("utf-8").partition(f"        {line}")
    assert found
    broken = f"        raise IndexError('broken')\n{found}"
    (copy / file).write_text(f"{before}{broken}{after}", "utf-8")
    number = before.count("\n") + 1
    done = subprocess.run(
        [sys.executable, "-m", "marsmith", "build", "shapes_tags"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (1, f"error: {words} ({file}:{number})\n")
    assert not list((copy / "model-store").iterdir())
