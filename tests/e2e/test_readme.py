"""What the README prints for a newcomer to type is typed here, in a copy of the project."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from homes import leave
from tiny import ending

from marsmith.addresses import Tokens, free_addresses, read_properties
from marsmith.environment import temp_folder
from marsmith.processes import find_running, is_alive

LEFT_OUT = shutil.ignore_patterns(
    *(".git", ".venv*", "build", "demo-out", "logs", "__pycache__", ".*_cache", ".hypothesis"),
    *("*.mar", "download"),
)
MISSING = "lenet5_digits-1.0.mar"
Copies = Callable[[], Path]


@pytest.fixture(scope="module")
def make_copy(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copies]:
    """Make copies of the project with this environment, and ports that nobody uses."""
    with ExitStack() as ends:

        def make() -> Path:
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
            ends.callback(leave, home)
            return home

        yield make


@pytest.fixture(scope="module")
def copy(make_copy: Copies) -> Path:
    """The copy in which most of it is typed."""
    return make_copy()


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


@pytest.fixture(scope="module")
def demo(copy: Path, commands: list[str]) -> Iterator[str]:
    """What `make demo` prints."""
    assert "make demo" in commands
    yield _run("make demo", copy)
    leave(copy / "build/demo")


def test_make_demo(copy: Path, demo: str) -> None:
    assert "over gRPC" in demo
    rows = re.findall(r"^│ \w+ +│ \w+\.(?:jpg|png) +│", demo, re.MULTILINE)
    assert rows
    assert demo.count("│ the same ") == len(rows), demo
    assert "\n415 {" in demo
    assert "Workers scaled to 2" in demo
    drawn = {path.name for path in (copy / "demo-out").iterdir()}
    models = {line.split()[0] for line in demo.splitlines() if line.startswith("built ")} and {
        Path(word).name.rpartition("-")[0] + ".jpg"
        for word in demo.split()
        if word.endswith(".mar")
    }
    assert drawn == models
    assert not find_running(temp_folder(copy / "build/demo"))


@pytest.fixture(scope="module")
def served(copy: Path, commands: list[str], demo: str) -> Iterator[list[str]]:
    """`make serve` with two versions of one model; the curl lines that it prints."""
    assert {"./build_mar.sh", "make serve"} <= set(commands)
    built = {path.name for path in (copy / "build/demo/model-store").iterdir()}
    for name in built - {MISSING}:
        shutil.copy(copy / "build/demo/model-store" / name, copy / "model-store")
    _run(next(c for c in commands if "--version 2.0" in c), copy)
    with ending(["make", "serve"], copy, 900, env=None, stderr=subprocess.STDOUT) as serve:
        assert serve.stdout is not None
        said, curls = [], []
        # Its end is in sight: `ending` ends what prints no more.
        for line in serve.stdout:
            said.append(line)
            if line.startswith("curl"):
                curls.append(line.strip())
                if len(curls) == len(built):
                    break
        assert len(curls) == len(built), "".join(said)
        yield curls
        os.killpg(serve.pid, signal.SIGINT)
        rest = serve.communicate(timeout=60)[0]
    # Of make, which ends as it was asked to, and would say if its command had failed.
    assert serve.returncode == -signal.SIGINT, rest
    assert "stopping TorchServe" in rest
    assert "Error" not in rest
    assert not find_running(temp_folder(copy))


def test_make_serve_builds_what_is_missing(copy: Path, served: list[str]) -> None:
    built = (copy / "model-store" / MISSING).read_bytes()
    assert built == (copy / "build/demo/model-store" / MISSING).read_bytes()


def test_the_printed_curl_lines_answer(copy: Path, served: list[str]) -> None:
    for curl in served:
        assert json.loads(_run(curl.replace("curl", "curl -sS -m 60", 1), copy))


def test_the_readme_curl_lines_answer(copy: Path, served: list[str], commands: list[str]) -> None:
    line = next(curl for curl in served if "mobilenet_v2_shapes" in curl)
    url = shlex.split(line)[-1]
    token = Tokens.read(copy).inference
    asked = [command for command in commands if command.startswith("curl")]
    assert len(asked) >= 4
    picture = "samples/shapes/star.jpg"
    for command in asked:
        typed = re.sub(r"http://127\.0\.0\.1:8080/predictions/\w+", url, command)
        typed = typed.replace("curl ...", f'curl -H "Authorization: Bearer $TOKEN" {url}', 1)
        typed = typed.replace('"b64": "..."', f'"b64": "\'$(base64 -w0 {picture})\'"')
        if not re.search(r" -[TFd] ", typed):
            typed += f" -T {picture}"
        answer = _run(f"TOKEN={token}; {typed.replace('curl', 'curl -sS -f -m 60', 1)}", copy)
        if "-o star.png" in typed:
            assert (copy / "star.png").read_bytes().startswith(b"\x89PNG")
        else:
            assert "star" in answer
            two = re.search(r"top.k\W+2", typed, re.IGNORECASE)
            assert (answer.count('"label"') == 2) is bool(two), typed + answer


def test_torchserve_by_hand(make_copy: Copies, demo: str, copy: Path, commands: list[str]) -> None:
    start = commands.index(". ./env.sh")
    assert commands[start + 1 : start + 3] == [
        "torchserve --start --models all",
        "torchserve --stop",
    ]
    asked = next(command for command in commands if command.startswith("curl -H"))
    home = make_copy()
    [archive] = (copy / "build/demo/model-store").glob(f"{asked.rpartition('/')[2]}-*.mar")
    shutil.copy(archive, home / "model-store")
    own = read_properties(home / "config.properties")["inference_address"]
    again = "curl -sS -f -m 20 --retry 60 --retry-delay 1 --retry-max-time 90 --retry-all-errors"
    key = "import json; print(json.load(open('key_file.json'))['inference']['key'])"
    typed = [
        "set -e",
        commands[start],
        f"{commands[start + 1]} >start.log 2>&1",
        "for i in $(seq 120); do [ -s key_file.json ] && break; sleep 0.5; done",
        f'TOKEN=$(python -c "{key}")',
        asked.replace("curl", again, 1).replace("http://127.0.0.1:8080", own),
        f"cat {shlex.quote(str(temp_folder(home)))}/.model_server.pid",
        commands[start + 2],
    ]
    printed = _run("\n".join(typed), home)
    found = re.fullmatch(r'(\[\{"label":"star".*\])\s*(\d+)\s*TorchServe has stopped\.\s*', printed)
    assert found, printed
    deadline = time.monotonic() + 120
    while is_alive(int(found[2])):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_list(copy: Path, commands: list[str]) -> None:
    assert "mobilenet_v2_shapes" in _run("./build_mar.sh --list", copy)


def test_documents_that_the_readme_names_exist(copy: Path) -> None:
    text = (copy / "README.md").read_text("utf-8")
    for target in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", text):
        assert (copy / target).exists(), target
