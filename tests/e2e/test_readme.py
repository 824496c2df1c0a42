"""What the README prints for a newcomer to type is typed here, in a copy of the project."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from marsmith.addresses import free_addresses, read_properties
from marsmith.environment import temp_folder
from marsmith.processes import find_running, stop_running

LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv*", "build", "demo-out", "logs", "__pycache__", ".*_cache", "*.mar", "download"
)


@pytest.fixture(scope="module")
def copy(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The project with this environment, and ports that nobody uses."""
    home = tmp_path_factory.mktemp("copy") / "marsmith"
    shutil.copytree(project, home, ignore=LEFT_OUT)
    # The environment that runs this test is the one that `make` would make.
    (home / ".venv").symlink_to(project / ".venv")
    for file in [*home.glob("requirements*.txt"), home / "pyproject.toml"]:
        # Older than that environment, or `make` would install this copy into it.
        os.utime(file, (0, 0))
    settings = {**read_properties(home / "config.properties"), **free_addresses()}
    lines = [f"{key}={value}\n" for key, value in settings.items()]
    (home / "config.properties").write_text("".join(lines))
    yield home
    stop_running(temp_folder(home))
    shutil.rmtree(temp_folder(home))


@pytest.fixture(scope="module")
def commands(copy: Path) -> list[str]:
    """Every line after a `$ ` in the README's console blocks, continuation lines joined."""
    text = (copy / "README.md").read_text("utf-8")
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line[2:].split("   #")[0].strip() for line in joined.splitlines() if line[:2] == "$ "]


def _run(command: str, copy: Path, timeout: float = 600) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=copy, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_make_demo(copy: Path, commands: list[str]) -> None:
    assert "make demo" in commands
    printed = _run("make demo", copy)
    assert "over gRPC" in printed
    drawn = {path.name for path in (copy / "demo-out").iterdir()}
    models = {line.split()[0] for line in printed.splitlines() if line.startswith("built ")} and {
        Path(word).name.rpartition("-")[0] + ".jpg"
        for word in printed.split()
        if word.endswith(".mar")
    }
    assert drawn == models
    assert not find_running(temp_folder(copy / "build/demo"))


@pytest.fixture(scope="module")
def served(copy: Path, commands: list[str]) -> Iterator[list[str]]:
    """`make serve` with two versions of one model; the curl lines that it prints."""
    assert {"./build_mar.sh", "make serve"} <= set(commands)
    _run("./build_mar.sh", copy)
    _run(next(c for c in commands if "--version 2.0" in c), copy)
    serve = subprocess.Popen(
        ["make", "serve"], cwd=copy, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert serve.stdout is not None
        curls = []
        for line in serve.stdout:
            if line.startswith("curl"):
                curls.append(line.strip())
                if len(curls) == len(list((copy / "model-store").glob("*-1.0.mar"))):
                    break
        yield curls
    finally:
        os.killpg(serve.pid, signal.SIGINT)
        serve.communicate(timeout=60)
    assert not find_running(temp_folder(copy))


def test_the_printed_curl_lines_answer(copy: Path, served: list[str]) -> None:
    for curl in served:
        assert json.loads(_run(curl.replace("curl", "curl -sS -m 60", 1), copy))


def test_the_readme_curl_lines_answer(copy: Path, served: list[str], commands: list[str]) -> None:
    line = next(curl for curl in served if "mobilenet_v2_shapes" in curl)
    url = shlex.split(line)[-1]
    token = re.search(r"Bearer (\S+)'", line)
    assert token
    asked = [command for command in commands if command.startswith("curl")]
    assert len(asked) >= 4
    picture = "samples/shapes/star.jpg"
    for command in asked:
        typed = re.sub(r"http://127\.0\.0\.1:8080/predictions/\w+", url, command)
        typed = typed.replace("curl ...", f'curl -H "Authorization: Bearer $TOKEN" {url}', 1)
        typed = typed.replace("@star.jpg", f"@{picture}")
        typed = typed.replace('"b64": "..."', f'"b64": "\'$(base64 -w0 {picture})\'"')
        if not re.search(r" -[TFd] ", typed):
            typed += f" -T {picture}"
        answer = _run(f"TOKEN={token[1]}; {typed.replace('curl', 'curl -sS -f -m 60', 1)}", copy)
        assert "-o" in typed or "star" in answer


def test_torchserve_by_hand(copy: Path, commands: list[str]) -> None:
    start = commands.index(". ./env.sh")
    assert commands[start + 1 : start + 3] == [
        "torchserve --start --models all",
        "torchserve --stop",
    ]
    wait = "for i in $(seq 120); do [ -s key_file.json ] && break; sleep 0.5; done; sleep 2"
    typed = [commands[start], f"{commands[start + 1]} >/dev/null", wait, commands[start + 2]]
    assert "TorchServe has stopped" in _run(" && ".join(typed), copy)


def test_list(copy: Path, commands: list[str]) -> None:
    assert "mobilenet_v2_shapes" in _run("./build_mar.sh --list", copy)


def test_documents_that_the_readme_names_exist(copy: Path) -> None:
    text = (copy / "README.md").read_text("utf-8")
    for target in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (copy / target).exists(), target
