"""Steps of a rollout that a real server hardly fails on demand; the rest is in tests/e2e."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from handlers.bundle import Bundle
from handlers.errors import ServerError, SignatureError
from handlers.integrity import RECORD
from marsmith import journal, keys, operate
from marsmith.archive import Header
from marsmith.client import Client, Refused, Reply
from marsmith.disagreement import Compared
from marsmith.grpc_client import GrpcClient
from marsmith.probe import Goldens
from marsmith.processes import Running
from marsmith.rollout import Change, Options
from marsmith.status import VersionStatus
from marsmith.steps import Step
from marsmith.watch import ACCESS_LOG


class _Server(Client):
    """A server of nothing: versions with their number of workers, and replies, are given."""

    def __init__(self, workers: dict[str, int], status: int = 415) -> None:
        self.workers, self.status, self.default = workers, status, "1.0"
        self.wanted, self.pids = 1, [os.getpid()]
        self.hangs, self.unzips = False, 0.0
        self.done: list[str] = []

    def models(self) -> list[str]:
        return ["m"]

    def describe(
        self, model: str, version: str | None = None, **given: Any
    ) -> list[dict[str, Any]]:
        if given.get("customized") and self.hangs:
            raise ServerError("no answer within 1 s")
        names = list(self.workers) if version == "all" else [version or self.default]
        return [
            {
                "modelVersion": name,
                "modelUrl": f"m-{name}.mar",
                "minWorkers": self.wanted,
                "workers": [
                    {"id": "9000", "status": "READY", "pid": pid}
                    for pid in islice(cycle(self.pids), self.workers[name])
                ],
                "jobQueueStatus": {"pendingRequests": 0, "remainingCapacity": 100},
            }
            for name in names
        ]

    def register(self, url: str, timeout: float | None = None) -> str:
        if timeout is not None and timeout < self.unzips:
            raise ServerError(f"no answer within {timeout:g} s")
        self.done.append(f"register {url}")
        return "registered"

    def unregister(self, model: str, version: str) -> str:
        del self.workers[version]
        return "unregistered"

    def scale(self, model: str, min_worker: int, *_: Any, **given: Any) -> str:
        self.done.append(f"scale {given['version']} {min_worker}")
        return ""

    def set_default(self, model: str, version: str) -> str:
        self.done.append(f"default {version}")
        return "switched"

    def metrics(self) -> str:
        return ""

    def ping(self) -> bool:
        return True

    def predict(self, model: str, body: Any, **_: Any) -> Reply:
        return Reply(self.status, "", b"{}")


class _Grpc(GrpcClient):
    def __init__(self) -> None:
        pass

    def predict(self, *_: Any, **__: Any) -> Reply:
        return Reply(200, "", b"{}")


def _change(folder: Path, server: _Server, old_workers: int = 1, **given: Any) -> Change:
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "logs/access_log.log").touch()
    config = folder / "config.properties"
    config.write_text("model_store=.\n")
    running = Running(os.getpid(), folder, config, 0)
    old = VersionStatus("m", "1.0", "m-1.0.mar", True, old_workers, old_workers, 0, 100, None)
    options = Options(**{"load": 0.0, **given})
    return Change(running, (server, _Grpc()), "m-2.0.mar", Header("m", "2.0"), old, options)


def test_it_gets_as_many_workers_as_the_old_version(tmp_path: Path) -> None:
    server = _Server({"1.0": 3, "2.0": 1})
    assert _change(tmp_path, server, old_workers=3).load() == "3 of 3 workers live"
    assert server.done == ["scale 2.0 3"]


def test_workers_that_do_not_load_in_time(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="its workers do not load within 0 s"):
        _change(tmp_path, _Server({"1.0": 1, "2.0": 0})).load()
    with pytest.raises(ServerError, match=r"m 2\.0 is not registered any more"):
        _change(tmp_path, _Server({"1.0": 1})).load()


def test_an_old_version_that_cannot_be_measured_is_no_reason_to_keep_it(tmp_path: Path) -> None:
    server = _Server({"1.0": 0, "2.0": 1})
    told = _change(tmp_path, server).switch()
    assert told.startswith("switched; how long 1.0 takes is not known: m-1.0.mar has no golden")
    assert server.done == ["default 2.0"]


def test_failures_of_the_old_version_before_the_switch_are_not_the_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed(code: int) -> str:
        line = f'- /127.0.0.1:1 "POST /predictions/m HTTP/1.1" {code} 0\n'
        with (tmp_path / ACCESS_LOG).open("a") as log:
            log.write(f"2026-01-02T03:04:05,678 {line}")
        return "switched"

    server = _Server({"1.0": 1, "2.0": 1})
    monkeypatch.setattr(server, "set_default", lambda *_: failed(500))
    change = _change(tmp_path, server)
    change.switch()
    failed(200)
    assert change._failures.read() == 0
    failed(503)
    assert change._failures.read() == 1


def test_who_answers_what_is_no_picture_is_not_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _proven(monkeypatch)
    with pytest.raises(ServerError, match="what is no picture is answered with 200, not 4xx"):
        _change(tmp_path, _Server({"1.0": 1, "2.0": 1}, status=415)).smoke()
    with pytest.raises(ServerError, match="answered with 503, not 4xx"):
        _change(tmp_path, _Server({"1.0": 1, "2.0": 1}, status=503)).smoke()


def test_somebody_else_changes_the_default_meanwhile(tmp_path: Path) -> None:
    change = _change(tmp_path, _Server({"1.0": 1, "2.0": 1}))
    assert "by somebody else" in str(change._trouble())


def _proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden requests that are always answered."""
    monkeypatch.setattr("marsmith.rollout.Goldens.read", lambda _: None)
    monkeypatch.setattr("marsmith.rollout.ask", lambda *_: type("Good", (), {"problem": None})())


def _loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[_Server, Change]:
    """A new version that has loaded and is the default one."""
    _proven(monkeypatch)
    server = _Server({"1.0": 1, "2.0": 1})
    server.default = "2.0"
    change = _change(tmp_path, server)
    change.load()
    return server, change


def test_a_worker_that_still_loads_is_no_dead_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, change = _loaded(tmp_path, monkeypatch)
    assert change._trouble() is None
    server.wanted = 2
    assert change._trouble() is None
    server.pids.append(os.getppid())
    server.workers["2.0"] = 2
    assert change._trouble() is None
    server.pids.pop()
    assert change._trouble() == "a worker died"


def test_who_names_no_version_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _proven(monkeypatch)
    server, named = _Server({"1.0": 1, "2.0": 1}), []
    monkeypatch.setattr(server, "predict", lambda *_, version: named.append(version))
    monkeypatch.setattr("marsmith.rollout.ask", lambda _, predict: predict(b""))
    change = _change(tmp_path, server)
    change._probe()
    change._new(b"")
    assert named == [None, "2.0"]


def test_a_worker_that_dies_between_load_and_watch_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, change = _loaded(tmp_path, monkeypatch)
    server.pids = [os.getppid()]
    assert change._trouble() == "a worker died"


def test_steps(tmp_path: Path) -> None:
    change = _change(tmp_path, _Server({"1.0": 1}))
    names = [step.name for step in change.steps()]
    assert names[0] == "register m-2.0.mar"
    assert names[-2:] == ["make 2.0 the default version", "watch it for 20 s"]
    assert [step.name for step in change.steps(registered=True)] == names[1:]


def test_a_version_that_hangs_is_taken_back(tmp_path: Path) -> None:
    for drain, told in (
        (0.0, "unregistered$"),
        (0.1, r"unregistered, .* not drained within 0\.1 s"),
    ):
        server = _Server({"1.0": 1, "2.0": 1})
        server.hangs = True
        change = _change(tmp_path, server, drain=drain)
        assert re.match(told, change.unregister())
        assert list(server.workers) == ["1.0"]
    server = _Server({"2.0": 1})
    server.hangs, server.default = True, "2.0"
    change = _change(tmp_path, server, drain=0.1)
    change.old = None
    assert change.unregister() == "unregistered", "nobody else answers what comes meanwhile"


def test_as_many_pictures_may_be_answered_otherwise_as_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marsmith.rollout.compare", lambda *_: Compared(4, ["a.png: a dog"]))
    change = _change(tmp_path, _Server({"1.0": 1, "2.0": 1}), disagreement=0.25)
    change.__dict__["_goldens"] = Goldens(Bundle.__new__(Bundle), ())
    assert change.compare() == "1 of 4 pictures answered otherwise: a.png: a dog"
    change._options = replace(change._options, disagreement=0.24)
    with pytest.raises(ServerError, match=r"otherwise: a\.png: a dog \(allowed 24\.000%\)"):
        change.compare()


def test_a_version_that_is_registered_late_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marsmith.rollout.signing.admit", lambda *_: None)
    server = _Server({"1.0": 1})
    server.unzips = 2.0
    assert _change(tmp_path, server, load=9.0).register() == "registered"
    for late, told in ((True, "unregistered"), (False, "not known whether .* `marsmith status`")):
        change = _change(tmp_path, server, load=1.0, drain=0.0)
        with pytest.raises(ServerError, match="no answer within 1 s"):
            change.register()
        naps = [0.0]

        def sleep(seconds: float, naps: list[float] = naps, late: bool = late) -> None:
            naps.append(naps[-1] + seconds)
            if late and naps[-1] > 5:
                server.workers["2.0"] = 1

        monkeypatch.setattr("marsmith.rollout.time.sleep", sleep)
        monkeypatch.setattr("marsmith.rollout.time.monotonic", lambda naps=naps: naps[-1])
        try:
            said = change.unregister()
        except ServerError as error:
            said = str(error)
        assert re.match(told, said)
        assert list(server.workers) == ["1.0"]


def test_a_signature_is_demanded_as_soon_as_the_configuration_says_so(tmp_path: Path) -> None:
    _, public = keys.generate(tmp_path / "release")
    started, now = "model_store=.\n", f"model_store=.\nrequire_signature={public.name}\n"
    with zipfile.ZipFile(tmp_path / "m-2.0.mar", "w") as archive:
        archive.writestr("model.pt", b"")
    change = _change(tmp_path, server := _Server({"1.0": 1}))
    copy = tmp_path / "copy.properties"
    change._running = replace(change._running, config=copy)
    # Also where the line is gone by now: the server was started under it
    for of_start, of_folder in ((started, now), (now, started)):
        copy.write_text(of_start)
        (tmp_path / "config.properties").write_text(of_folder)
        with pytest.raises(SignatureError, match=r"m-2\.0\.mar is not signed"):
            change.register()
    assert server.done == []
    (tmp_path / "config.properties").unlink()
    copy.write_text(started)
    assert change.register() == "registered"


def test_a_version_that_is_refused_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise Refused("409: registered already", 409)

    monkeypatch.setattr("marsmith.rollout.signing.admit", lambda *_: None)
    monkeypatch.setattr("marsmith.rollout.time.sleep", lambda _: pytest.fail("it waited"))
    monkeypatch.setattr(_Server, "register", refuse)
    change = _change(tmp_path, _Server({"1.0": 1}))
    assert change.unregister() == ""
    with pytest.raises(Refused):
        change.register()
    assert change.unregister() == ""


@pytest.mark.parametrize("stored", ["as loaded", "built again", None])
def test_a_version_beside_the_default_one_comes_back_if_the_store_still_has_it(
    tmp_path: Path, stored: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a rollout fails: the bytes that failed must not come in its place."""
    server = _Server({"1.0": 1, "0.9": 1})
    running = _change(tmp_path, server)._running
    # This process stands for its worker, which runs where its archive is unpacked
    (tmp_path / "MAR-INF").mkdir()
    (tmp_path / RECORD).write_text('{"sha256": "as loaded"}')
    monkeypatch.chdir(tmp_path)
    if stored:
        with zipfile.ZipFile(tmp_path / "m-0.9.mar", "w") as archive:
            archive.writestr(RECORD, json.dumps({"sha256": stored}))
    beside = VersionStatus("m", "0.9", "m-0.9.mar", False, 1, 1, 0, 100, None, (os.getpid(),))
    step = operate._removal(running, server, beside, Options(drain=0.0))
    assert step.undo
    assert step.undo() == ""
    server.unregister("m", "0.9")
    if stored == "as loaded":
        assert step.undo() == "registered"
        assert server.done == ["register m-0.9.mar"]
    else:
        with pytest.raises(ServerError, match=r"^m-0\.9\.mar of the store is not what served as 0"):
            step.undo()
        assert server.done == []


@pytest.mark.parametrize("signal", [KeyboardInterrupt(), SystemExit(1)])
def test_a_signal_after_the_switch_is_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal: BaseException
) -> None:
    change = _change(tmp_path, _Server({"1.0": 1, "2.0": 1}))

    def interrupted(_: Path) -> str:
        raise signal

    monkeypatch.setattr(operate.integrity, "sha256", interrupted)
    with pytest.raises(ServerError, match=r"2\.0 is the default .* but 1\.0 stays registered"):
        operate._carry_out(change._running, change, [], journal.ROLLOUT, False, print)
    last = journal.read(tmp_path)[-1]
    assert (last.result, last.archive) == (journal.KEPT, "m-2.0.mar")
    assert last.reason == "it was interrupted"
    assert journal.defaults(tmp_path) == {"m": "2.0"}


def test_where_the_journal_cannot_be_written_the_outcome_is_told_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = _change(tmp_path, _Server({"1.0": 1, "2.0": 1}))
    (tmp_path / "m-2.0.mar").touch()

    def full() -> str:
        # From here on, as a disk that runs full meanwhile.
        monkeypatch.setattr(operate.journal, "append", unwritten)
        return ""

    def unwritten(*_: Any) -> None:
        raise ServerError("cannot write the journal j: No space left on device")

    def fail() -> str:
        raise ServerError("too slow")

    for last, keep, outcome in (
        (Step("watch it", fail), True, "watch it: too slow; cannot write the journal"),
        (Step("watch it", lambda: ""), True, r"2\.0 is the default version now; cannot write"),
        (Step("watch it", lambda: ""), False, r"1\.0 stays registered: .*; cannot write"),
    ):
        monkeypatch.undo()
        monkeypatch.setattr(change, "remove_old", fail)
        steps = [Step("a", full), last]
        with pytest.raises(ServerError, match=outcome):
            operate._carry_out(change._running, change, steps, journal.ROLLOUT, keep, print)


@pytest.mark.parametrize(
    ("model", "pictures", "told"),
    [
        ("n", ["a.png"], ["nothing to compare with: no version of n is registered"]),
        ("n", [], []),
        ("m", ["a.png"], []),
    ],
)
def test_a_model_that_is_new_has_nothing_to_be_compared_with(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    pictures: list[str],
    told: list[str],
) -> None:
    server = _Server({"1.0": 1})
    running, name = _change(tmp_path, server)._running, f"{model}-2.0.mar"
    clients = nullcontext(SimpleNamespace(rest=server, both=(server, _Grpc())))
    monkeypatch.setattr(operate, "_clients", lambda *_: clients)
    monkeypatch.setattr(operate, "locate", lambda *_, **__: tmp_path / name)
    monkeypatch.setattr(operate, "read_header", lambda _: Header(model, "2.0"))
    carried: list[Change] = []
    monkeypatch.setattr(operate, "_carry_out", lambda _, change, *__: carried.append(change))
    said: list[str] = []
    options = Options([Path(each) for each in pictures])
    operate.roll_out(running, tmp_path / name, options, False, said.append)
    assert said == told
    assert [change.model for change in carried] == [model]


def test_a_copy_that_cannot_be_removed_is_told(tmp_path: Path) -> None:
    store, archive = tmp_path / "store", tmp_path / "m-2.0.mar"
    store.mkdir()
    manifest = json.dumps({"model": {"modelName": "m", "modelVersion": "2.0"}})
    digest = hashlib.sha256(manifest.encode()).hexdigest()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("MAR-INF/MANIFEST.json", manifest)
        file.writestr(RECORD, json.dumps({"sha256": {"MAR-INF/MANIFEST.json": digest}}))
    step = operate._admission(archive, store)
    assert step.do().startswith("every file as recorded, copied to")
    [copied] = store.glob("*.mar")
    assert step.undo
    assert step.undo() == f"{copied} removed"
    # As after a signal
    assert step.undo() == f"{copied} removed"
    copied.mkdir()
    with pytest.raises(ServerError, match=f"cannot remove {copied}: "):
        step.undo()
