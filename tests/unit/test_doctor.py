"""``marsmith doctor``: what is wrong is found, and what the repository ships is not."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from handlers.errors import PluginError, ServerError
from marsmith import doctor, keys, signing
from marsmith.addresses import bind_problem, free_addresses, hosts, read_properties
from marsmith.commands.doctor import command
from marsmith.environment import temp_folder
from marsmith.finding import Finding


@pytest.fixture
def home(tmp_path: Path, project: Path, lenet5: Path) -> Iterator[Path]:
    """A project with the shipped configuration, free ports and one archive."""
    settings = {**read_properties(project / "config.properties"), **free_addresses()}
    write(tmp_path, settings)
    (tmp_path / "model-store").mkdir()
    shutil.copy(lenet5, tmp_path / "model-store")
    yield tmp_path
    shutil.rmtree(temp_folder(tmp_path))


def write(home: Path, settings: dict[str, str]) -> None:
    lines = "".join(f"{name}={value}\n" for name, value in settings.items())
    (home / "config.properties").write_text(lines)


def examine(home: Path, **changes: str) -> list[Finding]:
    write(home, {**read_properties(home / "config.properties"), **changes})
    return doctor.examine(home, home / "config.properties")


def bad(found: list[Finding]) -> dict[str, Finding]:
    """What is not ok, but for who runs the tests and on how many cores."""
    rest = ("user", "cores")
    return {one.subject: one for one in found if one.level != "ok" and one.subject not in rest}


def test_nothing_is_wrong_with_what_is_shipped(home: Path) -> None:
    assert bad(examine(home)) == {}


@pytest.mark.parametrize(
    ("setting", "value", "subject", "level"),
    [
        ("inference_address", "http://0.0.0.0:0", "inference address", "wrong"),
        ("management_address", "http://[::]:0", "management address", "wrong"),
        ("metrics_address", "https://0.0.0.0:0", "metrics address", "warning"),
        ("grpc_management_address", "0.0.0.0", "grpc_management address", "wrong"),
        ("disable_token_authorization", "true", "token authorization", "wrong"),
        ("token_expiration_min", "60", "token lifetime", "warning"),
        ("token_expiration_min", "a year", "token lifetime", "warning"),
        ("enable_model_api", "true", "model API", "warning"),
        ("allowed_urls", "https://.*", "allowed_urls", "wrong"),
        ("allowed_urls", "none,file:///tmp/.*", "allowed_urls", "wrong"),
        ("allowed_urls", "[", "allowed_urls", "wrong"),
        ("install_py_dep_per_model", "true", "install_py_dep_per_model", "wrong"),
        ("use_env_allowed_urls", "TRUE", "use_env_allowed_urls", "wrong"),
        ("enable_envvars_config", "true", "enable_envvars_config", "wrong"),
        ("blacklist_env_vars", "", "blacklist_env_vars", "wrong"),
        ("blacklist_env_vars", "MY_.*", "blacklist_env_vars", "wrong"),
        ("require_signature", "", "require_signature", "wrong"),
        ("model_store", "nowhere", "nowhere", "wrong"),
    ],
)
def test_a_dangerous_setting_is_named_with_what_to_do(
    home: Path, setting: str, value: str, subject: str, level: str
) -> None:
    found = bad(examine(home, **{setting: value}))
    assert found[subject].level == level
    assert found[subject].mend


def test_what_is_left_out_counts_with_torchserves_default(home: Path) -> None:
    write(home, free_addresses())
    found = bad(doctor.examine(home, home / "config.properties"))
    assert {"allowed_urls", "blacklist_env_vars", "token lifetime"} <= found.keys()


def test_a_taken_port_is_named(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = bad(examine(home, grpc_inference_port=str(port)))
    assert f"127.0.0.1:{port} cannot be had" in found["grpc_inference port"].text


@pytest.mark.parametrize("port", ["http", "99999999"])
def test_a_port_that_is_none_says_so(home: Path, port: str) -> None:
    with pytest.raises(ServerError, match="an address or a port of the configuration is none"):
        hosts({"inference_address": f"http://127.0.0.1:{port}"})


@pytest.mark.parametrize("name", ["config.properties", "model-store", "lenet5_digits-1.0.mar"])
def test_what_everybody_may_write_is_named(home: Path, name: str) -> None:
    path = next(home.rglob(name))
    path.chmod(path.stat().st_mode | 0o002)
    assert bad(examine(home))[name].text == "everybody may change it"


def test_an_open_temp_folder_is_named(home: Path) -> None:
    temp_folder(home).chmod(0o755)
    assert "not a private folder" in bad(examine(home))["temp folder"].text
    temp = Path(bad(examine(home))["temp folder"].text.split()[0])
    temp.chmod(0o700)


def write_tokens(home: Path, left: timedelta) -> Path:
    end = (datetime.now(UTC) + left).isoformat().replace("+00:00", "123Z")
    keys = {name: {"key": "k", "expiration time": end} for name in ("inference", "management")}
    path = home / "key_file.json"
    path.write_text(json.dumps({**keys, "API": {"key": "k"}}))
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    ("days", "level"), [(300, None), (2, "warning"), (-1, "wrong")], ids=["fresh", "soon", "over"]
)
def test_tokens_that_end_are_told_in_time(home: Path, days: int, level: str | None) -> None:
    write_tokens(home, timedelta(days=days))
    found = bad(examine(home)).get("tokens")
    assert (found and found.level) == level


def test_a_token_file_must_be_private_and_readable(home: Path) -> None:
    path = write_tokens(home, timedelta(days=300))
    path.chmod(0o644)
    assert "others may read the tokens" in bad(examine(home))["key_file.json"].text
    path.chmod(0o600)
    path.write_text("{}")
    assert "not TorchServe's" in bad(examine(home))["key_file.json"].text


def test_java_is_judged_by_its_version(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    java = tmp_path / "jre/bin/java"
    java.parent.mkdir(parents=True)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jre"))
    assert "has no bin/java" in bad(examine(home))["java"].text
    for version, wrong in (("1.8.0_1", True), ("11.0.2", False), ("17.0.15", False), ("x", True)):
        java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
        java.chmod(0o755)
        assert ("java" in bad(examine(home))) is wrong


def test_a_spinning_wait_policy_is_a_warning(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert bad(examine(home))["OMP_WAIT_POLICY"].level == "warning"


def test_archives_are_read_but_for_those_that_the_policy_refuses(
    home: Path, tmp_path: Path
) -> None:
    secret, public = keys.generate(home / "release")
    archive = home / "model-store/lenet5_digits-1.0.mar"
    assert "is not signed" in bad(examine(home, require_signature=public.name))[archive.name].text
    signing.sign(archive, secret)
    assert bad(examine(home)) == {}
    public.chmod(0o666)
    assert "others may write it" in bad(examine(home))["require_signature"].text
    public.chmod(0o644)
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    assert bad(examine(home))[archive.name].level == "wrong"


def test_missing_and_other_packages_are_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda name: "0.1" if name == "torch" else "")
    assert "torch 0.1 (built with" in bad(examine(home))["lenet5_digits-1.0.mar"].text
    found = {"file": "m.mar", "runtime": "onnx", "packages": {}}
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    [finding] = doctor._packages(found)
    assert (finding.text, finding.mend) == ("runtime onnx needs onnxruntime", "make runtime-onnx")


def test_onnxruntime_for_gpus_counts_as_what_it_provides(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name != "onnxruntime-gpu":
            raise metadata.PackageNotFoundError(name)
        return "1.31.1"

    # Stands in for a host with the package for GPUs.
    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor.sbom, "providing", lambda names: [f"{name}-gpu" for name in names])
    monkeypatch.setattr(doctor, "find_spec", lambda name: name)
    found = {"file": "m.mar", "runtime": "onnx", "packages": {"onnxruntime": "1.31.1"}}
    assert list(doctor._packages(found)) == []
    found["packages"] = {"onnxruntime-gpu": "1.30.0"}
    [finding] = doctor._packages(found)
    assert "onnxruntime-gpu 1.31.1 (built with 1.30.0)" in finding.text


def test_too_many_workers_are_a_warning() -> None:
    one = {"file": "m.mar", "serving": {"minWorkers": 1000}, "limits": {"threads": 2}}
    assert [finding.level for finding in doctor._cores([one])] == ["warning", "warning"]


def test_the_exit_status_is_1_only_where_something_is_wrong(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    assert CliRunner().invoke(command, []).exit_code == 0
    examine(home, enable_model_api="true")
    assert CliRunner().invoke(command, []).exit_code == 0
    examine(home, disable_token_authorization="true")
    shown = CliRunner().invoke(command, ["--json"])
    assert shown.exit_code == 1
    levels = {one["subject"]: one["level"] for one in json.loads(shown.output)}
    assert levels["token authorization"] == "wrong"


def test_an_archive_of_a_runtime_that_is_not_here_costs_no_other_finding(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(name: str) -> None:
        raise PluginError(f"no runtime {name!r}: accepted are none")

    monkeypatch.setattr("marsmith.doctor.load_runtime", lost)
    found = bad(examine(home))
    assert "no runtime 'torchscript'" in found["lenet5_digits-1.0.mar"].text
    assert len(examine(home)) > 10


def test_the_configuration_to_look_at_can_be_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    text = (home / "config.properties").read_text()
    (home / "other.properties").write_text(f"{text}disable_token_authorization=true\n")
    for words, status, level in (([], 0, "ok"), (["--config", "other.properties"], 1, "wrong")):
        ended = CliRunner().invoke(command, [*words, "--json"])
        assert ended.exit_code == status, ended.output
        levels = {one["subject"]: one["level"] for one in json.loads(ended.stdout)}
        assert levels["token authorization"] == level
    ended = CliRunner().invoke(command, ["--config", "none.properties"])
    assert isinstance(ended.exception, ServerError)


def test_the_temp_folder_is_that_of_the_configuration_that_is_looked_at(home: Path) -> None:
    text = (home / "config.properties").read_text()
    (home / "other.properties").write_text(f"{text}temp_folder=elsewhere\n")
    found = doctor.examine(home, home / "other.properties")
    texts = {one.subject: one.text for one in found}
    assert texts["temp folder"] == f"{home / 'elsewhere'}, private"
    assert f" free in {home / 'elsewhere'}, " in texts["disk"]
    assert "elsewhere" not in {one.subject: one.text for one in examine(home)}["temp folder"]


def test_java_is_looked_for_where_a_start_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    asked: list[str] = []
    monkeypatch.setattr(
        doctor.environment,
        "find_java",
        lambda environ: asked.append(environ["PATH"]) or "/bin/true",
    )
    doctor._java()
    assert asked[0].split(os.pathsep) == [str(Path(sys.executable).parent), "/nowhere"]


def test_a_port_beyond_all_ports_cannot_be_had() -> None:
    assert "cannot be had: " in str(bind_problem("127.0.0.1", 77070))
