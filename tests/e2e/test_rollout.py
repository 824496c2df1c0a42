from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests
from proven import answer, asking, judge, pack_proven
from tiny import PROJECT, marsmith, pack

from benchmarks.asking import Counts, at_work
from handlers.errors import ArchiveError, IntegrityError, ServerError
from marsmith import journal
from marsmith.choosing import choose
from marsmith.client import Client, Reply
from marsmith.grpc_client import GrpcClient
from marsmith.operate import end_version, roll_back, roll_out
from marsmith.retire import scale_down
from marsmith.rollout import Options
from marsmith.server import TorchServe
from marsmith.status import read_status
from marsmith.steps import RolledBack
from marsmith.watch import Limits

# Not how long answers take: other tests share the machine.
QUICK = Options(drain=30, load=90, watch=Limits(seconds=1.5, slowdown=100))
PATIENT = ("--max-slowdown", "100")


@pytest.fixture(scope="module")
def server(make_home: Callable[[], Path]) -> Iterator[TorchServe]:
    """One TorchServe with the model API on, and version 1.0 of models for these tests."""
    home = make_home()
    store = home / "model-store"
    for name in ("m", "other", "told"):
        pack_proven(store, "1.0", name=name)
    pack_proven(store, "1.0", "built before", name="before")
    with TorchServe(home, config={"enable_model_api": "true"}) as server:
        server.wait_ready(120)
        yield server


@pytest.fixture
def client(server: TorchServe) -> Iterator[Client]:
    with server.client() as client:
        yield client


def _versions(server: TorchServe, client: Client, model: str) -> dict[str, bool]:
    found = read_status(server.running, client)
    return {one.version: one.default for one in found if one.model == model}


def _proving(counts: Counts, version: str) -> Callable[[str], None]:
    """Lets clients accept a version from the moment on that it is proven, and not before."""

    def say(line: str) -> None:
        if line.startswith("make "):
            counts.proven.add(version)

    return say


def test_clients_count_who_is_late() -> None:
    counts = Counts(judge, {"1.0"})
    say = counts.switching("2.0")

    def ask(version: str, told: str = "") -> list[str]:
        def predict() -> Reply:
            # It may happen while the request is under way
            say(told)
            return Reply(200, "", json.dumps(answer(version, b"x")).encode())

        counts.ask(predict, b"x")
        return [problem.partition(", ")[0] for problem in counts.problems]

    assert ask("1.0", "make 2.0 the default version ...") == []
    assert ask("2.0") == []
    assert ask("1.0", "watch it for 1 s ...") == []
    assert ask("2.0") == []
    assert ask("1.0") == ["late: 1.0"]


def test_nothing_is_lost_or_wrong_while_versions_change_under_load(
    server: TorchServe, client: Client, tmp_path: Path
) -> None:
    with asking(server.running, "1.0") as counts:
        for version in ("2.0", "3.0"):
            archive = pack_proven(tmp_path, version)
            if version == "3.0":
                client.scale("m", 2, timeout=60)
            roll_out(server.running, archive, QUICK, False, counts.switching(version))
            assert _versions(server, client, "m") == {version: True}
        # As many workers as the version before had
        assert len(client.describe("m")[0]["workers"]) == 2
        roll_back(server.running, "m", QUICK, False, counts.switching("2.0"))
        assert _versions(server, client, "m") == {"2.0": True}
        archive = pack_proven(tmp_path, "4.0", "wrong")
        with pytest.raises(RolledBack, match=r"golden request answered wrongly.*top-1 is wrong"):
            roll_out(server.running, archive, QUICK, False, counts.switching("4.0"))
        assert _versions(server, client, "m") == {"2.0": True}
    assert counts.problems == []
    assert set(counts.versions) == {"1.0", "2.0", "3.0"}
    results = [(e.operation, e.before, e.after, e.result) for e in journal.read(server.home, "m")]
    assert results == [
        ("rollout", "1.0", "2.0", "started"),
        ("rollout", "1.0", "2.0", "done"),
        ("rollout", "2.0", "3.0", "started"),
        ("rollout", "2.0", "3.0", "done"),
        ("rollback", "3.0", "2.0", "started"),
        ("rollback", "3.0", "2.0", "done"),
        ("rollout", "2.0", "4.0", "started"),
        ("rollout", "2.0", "4.0", "rolled back"),
    ]
    # A restart serves what was gone back to, and not the newest of the store
    restarted = choose(server.home, server.model_store, (), server.properties).archives
    assert [header.version for header in restarted.values() if header.name == "m"] == ["2.0"]
    assert not (server.model_store / "m-4.0.mar").exists()


def test_what_fails_while_it_is_watched_is_rolled_back(
    server: TorchServe, client: Client, tmp_path: Path
) -> None:
    [before] = client.describe("other")
    archive = pack_proven(tmp_path, "2.0", "fails later", name="other")
    with (
        asking(server.running, "1.0", model="other") as counts,
        pytest.raises(RolledBack, match="watch it for 20 s: "),
    ):
        roll_out(server.running, archive, Options(), False, _proving(counts, "2.0"))
    assert {line.partition(":")[0] for line in counts.problems} <= {"failed"}
    assert _versions(server, client, "other") == {"1.0": True}
    assert client.describe("other")[0]["workers"][0]["pid"] == before["workers"][0]["pid"]
    assert "watch it" in journal.read(server.home, "other")[-1].reason


def test_workers_are_ended_between_requests(server: TorchServe, client: Client) -> None:
    version = client.describe("other")[0]["modelVersion"]
    client.scale("other", 2, version=version, timeout=60)
    with asking(server.running, version, pause=0, model="other") as counts:
        scale_down(server.running, "other", version, 1, 20)
    assert counts.problems == []
    assert sum(counts.versions.values()) > 0
    assert len(client.describe("other")[0]["workers"]) == 1
    scale_down(server.running, "other", version, 0, 20)
    client.scale("other", 1, version=version, timeout=60)
    # What TorchServe makes of a worker's end is no trouble
    told = marsmith(server.home, "logs", "--errors", "-n", "0")
    assert told.returncode == 0, told.stderr
    assert "sendError" not in told.stdout
    assert "worker pid" not in told.stdout
    done = marsmith(server.home, "scale", "before", "0")
    assert done.returncode == 1
    assert "build it again" in done.stderr
    with journal.exclusive(server.home):
        done = marsmith(server.home, "scale", "before", "0", "--now")
    assert done.returncode == 1
    assert done.stderr.startswith("error: another rollout, rollback, remove or scaling of this")
    done = marsmith(server.home, "scale", "before", "0", "--now")
    assert done.returncode == 0, done.stderr
    assert client.describe("before")[0]["workers"] == []
    client.scale("before", 1, timeout=60)


def test_an_old_version_is_kept_on_demand_and_removed_later(
    server: TorchServe, client: Client, tmp_path: Path
) -> None:
    archive = pack_proven(tmp_path, "2.0", name="before")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("a.png", "b.jpg"):
        (pictures / name).write_bytes(name.encode())
    asked = ("rollout", str(archive), "--watch", "1", "--compare", str(pictures))
    done = marsmith(server.home, *asked)
    assert done.returncode == 1
    assert (
        "error: compare it with 1.0: 2 of 2 pictures answered otherwise: a.png: top-1 is 2.0"
        in (done.stderr)
    )
    allowed = ("--max-disagreement", "100%", "--max-failures", "1", "--load-timeout", "90")
    log = server.home / "logs/access_log.log"
    begun = len(log.read_bytes())
    done = marsmith(server.home, *asked, *allowed, "--keep", "--grpc", *PATIENT)
    assert done.returncode == 0, done.stderr
    over_rest = re.findall(rb'"(\w+ /models)', log.read_bytes()[begun:])
    # A worker's describe call may be, of what manages none is.
    assert set(over_rest) <= {b"GET /models"}
    assert "2 of 2 pictures answered otherwise" in done.stdout
    assert _versions(server, client, "before") == {"1.0": False, "2.0": True}
    with pytest.raises(ServerError, match="2.0 is the default version"):
        end_version(server.running, "before", "2.0", 5)
    end_version(server.running, "before", "1.0", 10)
    assert _versions(server, client, "before") == {"2.0": True}
    shown = marsmith(server.home, "history", "before").stdout
    assert "done, old version kept" in shown
    assert "compare it with 1.0" in shown


def test_what_cannot_be_rolled_out_changes_nothing(
    server: TorchServe, client: Client, tmp_path: Path
) -> None:
    version = client.describe("m")[0]["modelVersion"]
    with pytest.raises(ServerError, match=f"m {version} is the default version already"):
        roll_out(server.running, Path(f"m-{version}.mar"), QUICK, False, print)
    damaged = pack_proven(tmp_path, "7.0")
    damaged.write_bytes(damaged.read_bytes().replace(b"it fails later", b"it fails sooner"[:14]))
    with pytest.raises(RolledBack, match="verify m-7.0.mar: ") as raised:
        roll_out(server.running, damaged, QUICK, False, print)
    assert isinstance(raised.value.__cause__, ArchiveError | IntegrityError)
    other = pack_proven(tmp_path, "1.0", seconds=0.5, name="other")
    with pytest.raises(ServerError, match="is the default version already"):
        roll_out(server.running, other, QUICK, False, print)
    with pytest.raises(ServerError, match="journal knows no version of other before 1.0"):
        roll_back(server.running, "other", QUICK, False, print)
    assert _versions(server, client, "m") == {version: True}
    assert not (server.model_store / "m-7.0.mar").exists()


def test_without_the_model_api_it_says_how_to_start(served: TorchServe, tmp_path: Path) -> None:
    archive = pack_proven(tmp_path, "1.0", name="late")
    done = marsmith(served.home, "rollout", str(archive))
    assert done.returncode == 1
    assert done.stderr.endswith("start it with `marsmith serve --model-api`\n")
    assert not (served.model_store / "late-1.0.mar").exists()
    # It bans no version from another start.
    assert journal.read(served.home)[-1].result == journal.REFUSED
    assert ("late", "1.0") not in journal.serving(served.home)
    with GrpcClient.of(served.running) as client:
        for call in (lambda: client.register("x.mar"), lambda: client.unregister("echo", "1.0")):
            with pytest.raises(ServerError, match="marsmith serve --model-api"):
                call()


def test_a_first_version_stays_only_if_it_is_proven(
    server: TorchServe, client: Client, tmp_path: Path
) -> None:
    wrong = pack_proven(tmp_path, "1.0", "wrong", name="brand-new")
    with pytest.raises(RolledBack, match="golden request answered wrongly"):
        roll_out(server.running, wrong, QUICK, False, print)
    assert "brand-new" not in client.models()
    roll_out(server.running, pack_proven(tmp_path, "1.0", name="brand-new"), QUICK, False, print)
    assert _versions(server, client, "brand-new") == {"1.0": True}


def test_a_restart_serves_what_went_well_and_the_way_back_needs_no_model_api(home: Path) -> None:
    store, model_api = home / "model-store", {"enable_model_api": "true"}
    pack_proven(store, "1.0")
    with TorchServe(home, config=model_api) as server:
        server.wait_ready(60)
        # As built, beside the one that serves.
        pack_proven(store, "2.0", "wrong")
        with pytest.raises(RolledBack, match="golden request answered wrongly"):
            roll_out(server.running, Path("m-2.0.mar"), QUICK, False, print)
    with TorchServe(home, config=model_api) as server, server.client() as client:
        server.wait_ready(60)
        assert _versions(server, client, "m")["1.0"]
        pack_proven(store, "3.0")
        roll_out(server.running, Path("m-3.0.mar"), QUICK, True, print)
    with TorchServe(home) as server, server.client() as client:
        server.wait_ready(60)
        found = _versions(server, client, "m")
        assert (found["1.0"], found["3.0"]) == (False, True)
        done = marsmith(home, "rollback", "m", "--keep", "--watch", "1", *PATIENT)
        assert (done.returncode, done.stderr) == (0, "")
        assert "register" not in done.stdout
        found = _versions(server, client, "m")
        assert (found["1.0"], found["3.0"]) == (True, False)
    last = journal.read(home)[-1]
    assert (last.operation, last.after, last.result) == ("rollback", "1.0", journal.KEPT)


def test_versions_come_and_go_over_grpc_too(server: TorchServe, client: Client) -> None:
    pack_proven(server.model_store, "1.0", name="first")
    with GrpcClient.of(server.running) as grpc_client:
        grpc_client.register("first-1.0.mar")
        assert _versions(server, client, "first") == {"1.0": True}
        grpc_client.set_default("first", "1.0")
        grpc_client.unregister("first", "1.0")
    assert "first" not in client.models()


def test_a_rollout_that_is_told_to_end_takes_itself_back(
    server: TorchServe, client: Client, tmp_path: Path
) -> None:
    archive = pack_proven(tmp_path, "2.0", name="told")
    words = ("rollout", str(archive), "--watch", "100", *PATIENT)
    with (
        asking(server.running, "1.0", threads=2, model="told") as counts,
        subprocess.Popen(
            [sys.executable, "-u", "-m", "marsmith", *words],
            cwd=server.home,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            for line in process.stdout:
                if line.startswith("make 2.0"):
                    counts.proven.add("2.0")
                if line.startswith("watch it"):
                    break
            assert _versions(server, client, "told") == {"1.0": False, "2.0": True}
            process.send_signal(signal.SIGTERM)
            # Whoever is impatient does not disturb what is being taken back
            process.send_signal(signal.SIGHUP)
            told, said = process.stdout.read(), process.stderr.read()
            assert process.wait(60) == 1
        finally:
            process.kill()
    assert said == "error: watch it for 100 s: it was interrupted\n"
    assert told.count("taken back: ") == 3
    assert counts.problems == []
    assert set(counts.versions) >= {"1.0"}
    assert _versions(server, client, "told") == {"1.0": True}
    last = journal.read(server.home, "told")[-1]
    assert (last.operation, last.before, last.after) == ("rollout", "1.0", "2.0")
    assert (last.result, last.reason) == ("rolled back", "watch it for 100 s: it was interrupted")
    assert not (server.model_store / archive.name).exists()


@contextmanager
def _busy(server: TorchServe, model: str, version: str) -> Iterator[None]:
    """A client who names the version in its URL, and asks it without a pause."""
    stop, begun = threading.Event(), threading.Event()

    def loop() -> None:
        # What is under way in a version that is ended at once is never answered
        with Client.of(server.running, timeout=3) as client, suppress(ServerError):
            while not stop.is_set() and client.predict(model, b"busy", version=version).ok:
                begun.set()

    with at_work([loop], stop):
        assert begun.wait(30)
        yield


def test_an_old_version_that_stays_busy_is_kept_and_ended_by_force(
    server: TorchServe, client: Client, tmp_path: Path
) -> None:
    archive = pack_proven(tmp_path, "3.0", name="told")
    with _busy(server, "told", "1.0"):
        words = ("rollout", str(archive), "--watch", "1", "--drain-timeout", "1", *PATIENT)
        done = marsmith(server.home, *words)
        assert done.returncode == 1
        assert "told 3.0 is the default version now, but 1.0 stays registered" in done.stderr
        assert "not drained within 1 s" in done.stderr
        assert "end it with `marsmith remove told 1.0`" in done.stderr
        assert _versions(server, client, "told") == {"1.0": False, "3.0": True}
        assert journal.read(server.home, "told")[-1].result == journal.KEPT
        done = marsmith(server.home, "remove", "told", "1.0", "--drain-timeout", "1")
        assert done.returncode == 1
        assert "told 1.0 is not drained within 1 s" in done.stderr
        assert _versions(server, client, "told") == {"1.0": False, "3.0": True}
        ended = ("told", "1.0", "--drain-timeout", "0", "--grpc")
        done = marsmith(server.home, "remove", *ended)
        assert (done.returncode, done.stderr) == (0, "")
        assert _versions(server, client, "told") == {"3.0": True}
    last = journal.read(server.home, "told")[-1]
    assert (last.operation, last.before, last.result) == ("remove", "1.0", "done")
    done = marsmith(server.home, "rollback", "told", "--watch", "1", *PATIENT)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "done")
    assert _versions(server, client, "told") == {"1.0": True}


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of an archive on another server, and the paths that were asked of that."""
    pack(tmp_path, "elsewhere")
    asked: list[str] = []

    class Files(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            content = (tmp_path / "elsewhere-1.0.mar").read_bytes()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Files) as files:
        thread = threading.Thread(target=files.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{files.server_port}/elsewhere-1.0.mar", asked
        files.shutdown()
        thread.join()


def test_nothing_is_fetched_from_another_place(
    server: TorchServe, client: Client, tmp_path: Path, elsewhere: tuple[str, list[str]]
) -> None:
    remote, asked = elsewhere
    archive = tmp_path / "elsewhere-1.0.mar"
    before, models = sorted(server.model_store.iterdir()), client.models()
    token = {"authorization": f"Bearer {client.tokens.management}"}
    for url in (remote, f"file://{archive}", str(archive), f"../{archive.name}"):
        given = {"url": url, "initial_workers": "1", "synchronous": "true"}
        address = f"{server.running.addresses.management}/models"
        reply = requests.post(address, params=given, headers=token, timeout=30)
        assert 400 <= reply.status_code < 500, (url, reply.text)
        with GrpcClient.of(server.running) as grpc_client, pytest.raises(ServerError):
            grpc_client.register(url)
    assert asked == []
    assert client.models() == models
    assert sorted(server.model_store.iterdir()) == before
