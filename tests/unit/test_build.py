"""Builds: reproducible, all or nothing, and archives that refuse to load when they were changed."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from handlers import plugins
from handlers.errors import (
    ArchiveError,
    BuildError,
    ExportError,
    GoldenError,
    IntegrityError,
    LoadError,
    MarsmithError,
    ParityError,
    SmokeError,
    SpecError,
    WeightsError,
)
from handlers.integrity import RECORD, sha256
from handlers.runtimes.torchscript import TorchScript
from marsmith import archive, build, metrics, preparing, proving, samples, spec

RUNTIMES = [
    ("torchscript", {"method": "trace"}),
    ("torchscript", {"method": "script"}),
    ("eager", {}),
]
IDS = ["trace", "script", "eager"]

# TorchScript numbers its types by process, so what is compared is made by processes of their own.
PACK = """
import json, sys
from pathlib import Path
from handlers.integrity import sha256
from marsmith import archive, build, spec

project, place = Path(sys.argv[1]), Path(sys.argv[2])
for number, (runtime, options) in enumerate(json.loads(sys.argv[3])):
    overrides = {"runtime": runtime, "runtime_options": options}
    model = spec.load(project / "models/lenet5_digits.yaml", overrides)
    folder = place / str(number)
    folder.mkdir(parents=True)
    proof = build._stage(model, project, folder, lambda stage: None)
    archive.pack(folder, proof.artifact.bundle, place / f"{number}.mar")
    print(sha256(place / f"{number}.mar"))
"""


def quiet(_: str) -> None:
    """Tell nobody."""


def lenet5(project: Path, **changes: Any) -> spec.ModelSpec:
    return spec.load(project / "models/lenet5_digits.yaml", changes)


def content(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir()}


@pytest.fixture
def stage(tmp_path: Path, project: Path) -> Callable[..., Path]:
    """Every stage of a build but the last two: the folder that would be packed."""

    def run(**changes: Any) -> Path:
        folder = tmp_path / "staged"
        folder.mkdir()
        build._stage(lenet5(project, **changes), project, folder, quiet)
        return folder

    return run


# Good builds -------------------------------------------------------------------------------


def test_an_archive_holds_what_it_needs_and_where_it_comes_from(
    lenet5: Path, unpacked: Path
) -> None:
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*")}
    assert lenet5.name == "lenet5_digits-1.0.mar"
    assert {
        "MAR-INF/MANIFEST.json",
        "MAR-INF/RECORD.json",
        "golden/0.png",
        "golden/requests.json",
        "handlers/entry.py",
        "marsmith.json",
        "model-config.yaml",
        "model.pt",
        "parity.json",
    } <= names
    described = json.loads((unpacked / "marsmith.json").read_text())["provenance"]
    weights = "6c8761b6f8a8dcc7f6898462e7e7df27d89797221fe99fee42efd317f44348a4"
    assert described["spec"]["weights"] == {"file": "lenet5_digits.pth", "sha256": weights}
    assert described["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert described["licence"] == "Apache-2.0"
    assert yaml.safe_load((unpacked / "model-config.yaml").read_text())["batchSize"] == 8


def test_no_path_of_the_build_machine_is_in_an_archive(lenet5: Path, project: Path) -> None:
    everything = lenet5.read_bytes()
    for place in (str(project), str(lenet5.parent), str(Path.home()) + "/", ".build-"):
        assert place.encode() not in everything


def test_no_path_of_a_folder_of_pictures_is_in_an_archive(project: Path, tmp_path: Path) -> None:
    for key in ("ours", "theirs"):
        shutil.copytree(project / "samples/digits", tmp_path / key)
    changes = {
        "samples": str(project / "samples/digits"),
        "precision": "int8",
        "runtime": "openvino",
        "calibration": {"folder": str(tmp_path / "ours"), "count": 5},
        "accuracy": {"folder": str(tmp_path / "theirs")},
    }
    made = lenet5(project, **changes)
    bundle = preparing.bundle_of(made, project, [], weights=project / made.weights.file)
    recorded = bundle.provenance["spec"]
    assert recorded["calibration"]["folder"] == "ours"
    assert recorded["accuracy"]["folder"] == "theirs"
    text = json.dumps(bundle.provenance)
    assert str(project) not in text
    assert str(tmp_path) not in text


def test_two_builds_in_two_places_give_the_same_bytes(project: Path, tmp_path: Path) -> None:
    places = [tmp_path / "a", tmp_path / "b/much/longer/place"]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PACK, project, place, json.dumps(RUNTIMES)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for place in places
    ]
    digests = []
    for process in running:
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        digests.append(dict(zip(IDS, out.split(), strict=True)))
    assert digests[0] == digests[1]
    assert len(set(digests[0].values())) == len(IDS)


def test_only_force_replaces_other_bytes_and_the_same_bytes_are_left(
    project: Path, lenet5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The fixture's build had its smoke test; three more would take a quarter of a minute.
    monkeypatch.setattr(build.smoke, "prepared", lambda *_: nullcontext(lambda path: None))
    store = tmp_path / "store"
    store.mkdir()
    shutil.copy(lenet5, store)
    before = content(store)
    model = spec.load(project / "models/lenet5_digits.yaml", {"runtime": "eager"})
    with pytest.raises(ArchiveError, match=r"with other bytes: .* --version, .* --force"):
        build.build(model, project, store, tell=quiet)
    monkeypatch.setattr(plugins.load_runtime("eager"), "reproducible", "never")
    with pytest.raises(
        ArchiveError, match=r"bytes \(runtime eager gives others at every build\): "
    ):
        build.build(model, project, store, tell=quiet)
    assert content(store) == before
    forced = build.build(model, project, store, force=True, tell=quiet)
    assert not forced.unchanged
    assert sha256(store / lenet5.name) == forced.sha256 != sha256(lenet5)
    assert [path.name for path in store.iterdir()] == [lenet5.name]
    assert build.build(model, project, store, tell=quiet).unchanged


# Builds that fail ----------------------------------------------------------------------------

NOISY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 10)

    def forward(self, x):
        {forward}
"""


@pytest.fixture
def own(tmp_path: Path, project: Path) -> Callable[[str], Path]:
    """A project whose only model has a network of the given source."""

    def make(source: str) -> Path:
        root = tmp_path / "own"
        root.mkdir()
        (root / "net.py").write_text(source)
        torch.manual_seed(0)
        state = {"linear.weight": torch.randn(10, 1) * 9, "linear.bias": torch.randn(10)}
        torch.save(state, root / "w.pth")
        fields = {
            "name": "own",
            "task": "image-classification",
            "architecture": "net.py:Net",
            "weights": {"file": "w.pth"},
            "labels": list("abcdefghij"),
            "input": {"color": "gray", "resize": [32, 32], "mean": [0.3], "std": [0.1]},
            "samples": str(project / "samples/digits"),
            "runtime": "eager",
        }
        (root / "own.yaml").write_text(yaml.safe_dump(fields))
        return root

    return make


def test_a_network_that_answers_otherwise_each_time_fails_parity(
    own: Callable[[str], Path], lenet5: Path, tmp_path: Path
) -> None:
    root = own(NOISY.format(forward="return self.linear(x.mean((2, 3)) + torch.randn(1))"))
    store = tmp_path / "store"
    store.mkdir()
    shutil.copy(lenet5, store)
    before = content(store)
    with pytest.raises(ParityError, match="differs from eager"):
        build.build(spec.load(root / "own.yaml"), root, store, tell=quiet)
    assert content(store) == before


def test_an_archive_that_needs_something_of_the_build_process_fails_smoke(
    own: Callable[[str], Path],
    lenet5: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path/only_on_the_build_host.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "path")
    forward = "return self.linear(x.mean((2, 3)))"
    root = own("import only_on_the_build_host\n" + NOISY.format(forward=forward))
    store = tmp_path / "store"
    store.mkdir()
    shutil.copy(lenet5, store)
    before = content(store)
    with pytest.raises(SmokeError, match=r"marsmith: refused own 1\.0: .*only_on_the_build_host"):
        build.build(spec.load(root / "own.yaml"), root, store, tell=quiet)
    assert content(store) == before


@pytest.mark.parametrize("came", ["3", 3.0])
def test_defaults_are_what_their_options_read(stage: Callable[..., Path], came: Any) -> None:
    read = json.loads((stage(defaults={"top_k": came}) / "marsmith.json").read_text())
    assert repr(read["defaults"]) == "{'top_k': 3}"


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"labels": list("abcdefghi")}, WeightsError, "9 labels for a network with 10 classes"),
        (
            {"weights": {"file": "weights/none.pth"}},
            WeightsError,
            "no weights at .*/weights/none.pth",
        ),
        (
            {"weights": {"file": "samples/README.md"}},
            WeightsError,
            "cannot be read as a state_dict",
        ),
        ({"samples": "models"}, SpecError, r"^samples \(--samples\): no pictures in"),
        ({"runtime_options": {"method": "jit"}}, ExportError, "accepted are trace, script"),
        ({"defaults": {"topk": 3}}, SpecError, "unknown key 'topk': accepted are top_k"),
        ({"defaults": {"top_k": 0}}, SpecError, "defaults.top_k: .* a whole number from 1"),
        ({"defaults": {"top_k": "x"}}, SpecError, "defaults.top_k"),
        (
            {"defaults": {"top_k": "x", "least": 1}},
            SpecError,
            "defaults.top_k: .*; defaults has the unknown key 'least'",
        ),
        ({"labels": []}, SpecError, "labels: there are none"),
        (
            {"architecture": "torchvision:resnet17"},
            MarsmithError,
            "Unknown model resnet17; did you mean resnet1",
        ),
        ({"architecture": "training/networks/lenet5.py:Net"}, MarsmithError, "defines no Net"),
        ({"arguments": {"classes": 3}}, MarsmithError, "classes"),
        ({"input": {"resize": [32, 32]}}, MarsmithError, "3 channels"),
    ],
)
def test_a_mistake_stops_the_build_saying_what(
    stage: Callable[..., Path], changes: dict[str, Any], kind: type[MarsmithError], words: str
) -> None:
    with pytest.raises(kind, match=words) as refused:
        stage(**changes)
    assert "\n" not in str(refused.value)


def test_a_runtime_that_takes_one_picture_a_call_is_given_no_more(
    stage: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchScript, "varies", ())
    bundle = json.loads((stage() / "marsmith.json").read_text())
    assert bundle["artifact_batch"] == 1 < bundle["limits"]["batch_size"]


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("varies", ("batch",), r"torchscript takes pictures of one size alone: .* \(--resize H,W"),
        (
            "excluded_tasks",
            {"image-classification": "too many"},
            r"torchscript takes no models of task image-classification \(too many\): choose",
        ),
    ],
)
def test_a_model_beyond_what_its_runtime_takes_stops_the_build(
    stage: Callable[..., Path], limit: str, value: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchScript, limit, value)
    gray = {"color": "gray", "resize": 32, "mean": [0.3], "std": [0.3]}
    with pytest.raises(SpecError, match=f"^runtime {words}"):
        stage(input=gray)


def test_samples_that_prove_nothing_stop_the_build(
    stage: Callable[..., Path], project: Path, tmp_path: Path
) -> None:
    for name in ("one.png", "two.png"):
        (tmp_path / "same").mkdir(exist_ok=True)
        shutil.copy(project / "samples/digits/3.png", tmp_path / "same" / name)
    with pytest.raises(ParityError, match="agreement would prove nothing"):
        stage(samples=str(tmp_path / "same"))


@pytest.mark.parametrize(("runtime", "options"), RUNTIMES, ids=IDS)
def test_every_runtime_that_comes_with_torch_is_staged(
    stage: Callable[..., Path],
    runtime: str,
    options: dict[str, str],
) -> None:
    report = json.loads(
        (stage(runtime=runtime, runtime_options=options) / "parity.json").read_text()
    )
    assert report["batch_sizes"] == [1, 2, 8]
    assert report["largest_difference"] < 1e-5
    assert report["device"] == ("cuda:0" if torch.cuda.is_available() else "cpu")


# Archives that were changed ------------------------------------------------------------------


def record_again(folder: Path) -> None:
    """What an attacker does, or a careless repair: make the record fit the files."""
    names = [p for p in folder.rglob("*") if p.is_file() and p != folder / RECORD]
    digests = {path.relative_to(folder).as_posix(): sha256(path) for path in names}
    (folder / RECORD).write_text(json.dumps({"sha256": digests}))


def swap_labels(folder: Path) -> str:
    """Swap the label of a golden answer with another; the name of the changed file."""
    path = folder / "marsmith.json"
    fields = json.loads(path.read_text())
    golden = json.loads((folder / "golden/requests.json").read_text())
    labels = fields["labels"]
    first = labels.index(golden[0]["answer"][0]["label"])
    second = (first + 1) % len(labels)
    labels[first], labels[second] = labels[second], labels[first]
    path.write_text(json.dumps(fields))
    return path.name


def replace_weights(folder: Path) -> str:
    """Put another tensor of the same shape into the artifact; the name of the changed file."""
    path = folder / "model.pth"
    saved = torch.load(path, weights_only=True)
    name = next(name for name in saved["state"] if name.endswith("fc3.weight"))
    saved["state"][name] = saved["state"][name].flip(0)
    torch.save(saved, path)
    return path.name


def add_file(folder: Path) -> str:
    (folder / "json.py").write_text("raise SystemExit\n")
    return "json.py"


def remove_file(folder: Path) -> str:
    (folder / "golden/1.png").unlink()
    return "golden/1.png"


def change_handler(folder: Path) -> str:
    path = folder / "handlers/tasks/image_classification.py"
    path.write_bytes(path.read_bytes().replace(b"-scores", b"+scores", 1))
    return "handlers/tasks/image_classification.py"


@pytest.fixture(scope="module")
def eager_archive(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, folder = lenet5(project, runtime="eager"), tmp_path_factory.mktemp("staged")
    bundle = build._stage(model, project, folder, quiet).artifact.bundle
    path = tmp_path_factory.mktemp("eager") / "lenet5_digits-1.0.mar"
    archive.pack(folder, bundle, path)
    return path


@pytest.fixture
def eager(eager_archive: Path, tmp_path: Path) -> Path:
    """An unpacked archive of the eager runtime, which a test may damage."""
    archive.unpack(eager_archive, tmp_path / "eager")
    return tmp_path / "eager"


def test_an_unchanged_archive_loads(eager: Path, load_worker: Callable[[Path], Any]) -> None:
    assert load_worker(eager).handler.bundle.runtime == "eager"


@pytest.mark.parametrize(
    "change", [swap_labels, replace_weights, add_file, remove_file, change_handler]
)
def test_a_changed_archive_refuses_naming_the_file(
    eager: Path,
    load_worker: Callable[[Path], Any],
    change: Callable[[Path], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = change(eager)
    with pytest.raises(IntegrityError, match=f"^{name} "):
        load_worker(eager)
    assert f"marsmith: refused lenet5_digits 1.0: {name} " in caplog.text


def test_one_byte_of_any_file_is_enough(unpacked: Path, load_worker: Callable[[Path], Any]) -> None:
    for path in sorted(p for p in unpacked.rglob("*") if p.is_file() and p.name != "RECORD.json"):
        original = path.read_bytes()
        middle = len(original) // 2
        path.write_bytes(original[:middle] + b"\x00" + original[middle + 1 :] + b"")
        if path.read_bytes() == original:
            path.write_bytes(original + b"\x01")
        name = path.relative_to(unpacked).as_posix()
        if name == "MAR-INF/MANIFEST.json":
            path.write_bytes(original + b" ")
        with pytest.raises(IntegrityError, match=f"^{name} was changed"):
            load_worker(unpacked)
        path.write_bytes(original)
    load_worker(unpacked)


@pytest.mark.parametrize("change", [swap_labels, replace_weights])
def test_golden_requests_refuse_what_a_new_record_hides(
    eager: Path,
    load_worker: Callable[[Path], Any],
    change: Callable[[Path], str],
) -> None:
    change(eager)
    record_again(eager)
    with pytest.raises(GoldenError, match=r"golden/\d\.png is not answered as at build"):
        load_worker(eager)


@pytest.mark.parametrize("wrong", [False, True])
def test_whether_golden_requests_were_answered_is_a_metric(
    eager: Path,
    load_worker: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    wrong: bool,
) -> None:
    """The alert MarsmithGoldenWrong waits for the 0."""
    from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl

    cache = MetricsCacheYamlImpl(str(metrics.CONFIG))
    cache.initialize_cache()
    # As TorchServe does before a load.
    cache.set_request_ids("load")
    if wrong:
        swap_labels(eager)
        record_again(eager)
    caplog.set_level("INFO")
    with pytest.raises(GoldenError) if wrong else nullcontext():
        load_worker(eager, cache)
    told = [line for line in caplog.messages if line.startswith("[METRICS]MarsmithGoldenOk.")]
    labels = "ModelName:lenet5_digits,ModelVersion:1.0,Level:Model"
    (line,) = told
    value = 0 if wrong else 1
    assert line.startswith(f"[METRICS]MarsmithGoldenOk.Count:{value}|#{labels}|#type:GAUGE|")
    assert any("MarsmithLoads." in line for line in caplog.messages) is not wrong


def test_whatever_fails_while_loading_is_a_load_error(
    eager: Path, load_worker: Callable[[Path], Any]
) -> None:
    path = eager / "marsmith.json"
    good = json.loads(path.read_text())
    for name, value in [
        ("task", "no-such"),
        ("runtime", "no-such"),
        ("artifact", "none.pth"),
        ("limits", {"workers": 0}),
        ("defaults", {"top_k": "many"}),
        ("labels", []),
        ("input", {"colour": "rgb"}),
        ("unknown", 1),
    ]:
        path.write_text(json.dumps(good | {name: value}))
        record_again(eager)
        with pytest.raises(LoadError) as refused:
            load_worker(eager)
        assert "\n" not in str(refused.value)


def test_a_torchscript_artifact_needs_no_source(unpacked: Path) -> None:
    shutil.rmtree(unpacked / "source")
    artifact = TorchScript(unpacked / "model.pt", "cpu", {"threads": 1})
    (scores,) = artifact(np.zeros((2, 32, 32, 1), np.uint8))
    assert scores.shape == (2, 10)


@pytest.mark.parametrize(("name", "varies"), [("lenet5_digits", False), ("lraspp_shapes", True)])
def test_inputs_of_any_size_are_proven_at_another_size_than_the_samples(
    name: str, varies: bool, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All scenes are 480x360, at which a script may agree with eager, and not at 427x640."""
    sizes: list[tuple[int, int]] = []

    def seen(*given: Any) -> None:
        sizes.extend(image.size for image in given[5])
        raise ParityError("seen enough")

    monkeypatch.setattr(proving, "proven", seen)
    with pytest.raises(ParityError, match="seen enough"):
        build._stage(spec.load(project / f"models/{name}.yaml"), project, tmp_path, quiet)
    assert len(sizes) > 1
    assert ((427, 640) in sizes) is varies


@pytest.mark.parametrize("where", ["samples", "store"])
def test_a_place_that_gives_no_right_is_named(
    where: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    place = (store if where == "store" else project / "samples/digits") / "3.png"

    def opened(*_: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(place))

    monkeypatch.setattr(samples, "opened", opened)
    with pytest.raises(BuildError) as refused:
        build.build(spec.load(project / "models/lenet5_digits.yaml"), project, store, tell=quiet)
    words = str(refused.value)
    if where == "store":
        assert words.startswith(f"{store} does not take the archive (Permission denied)")
    else:
        assert words == f"{place}: Permission denied: make room or give rights there"
