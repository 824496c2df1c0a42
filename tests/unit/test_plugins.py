"""Plugins are found by their files' names, and one that breaks its contract is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handlers import plugins, runtimes, tasks
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


TASK = """
from handlers.options import Option
from handlers.tasks.image_classification import ImageClassification

class Mine(ImageClassification):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of runtimes that a test may add files to; that of tasks lies beside it."""
    monkeypatch.setattr(plugins, "__file__", str(tmp_path / "plugins.py"))
    for package in (runtimes, tasks):
        place = tmp_path / package.__name__.rpartition(".")[2]
        place.mkdir()
        (place / "__init__.py").touch()
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(place)])
    return tmp_path / "runtimes"


@pytest.fixture(autouse=True)
def forget() -> None:
    for name in ("runtimes.my_own", "runtimes.broken", "tasks.my_own"):
        sys.modules.pop(f"handlers.{name}", None)


def loaded(folder: Path, lines: str) -> Any:
    """The runtime ``ONE`` with more lines in its class."""
    (folder / "my_own.py").write_text(ONE + lines)
    return plugins.load_runtime("my-own")


def task(folder: Path, lines: str) -> Any:
    """A task that classifies, with more lines in its class."""
    (folder.parent / "tasks/my_own.py").write_text(TASK + lines)
    return plugins.load_task("my-own")


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
    ("source", "count", "names"),
    [
        ("", 0, "none"),
        ("from handlers.runtimes.eager import Eager", 0, "none"),
        (ONE + ONE.replace("Mine", "B"), 2, "Mine, B"),
    ],
)
def test_a_file_without_exactly_one_class_is_refused(
    folder: Path, source: str, count: int, names: str
) -> None:
    (folder / "broken.py").write_text(source)
    words = rf"defines {count} subclasses of Runtime \({names}\): exactly one"
    with pytest.raises(PluginError, match=rf"^handlers/runtimes/broken\.py {words}"):
        plugins.load_runtime("broken")


def test_another_name_of_the_class_is_no_second_one(folder: Path) -> None:
    assert loaded(folder, "\n\nAlias = Mine").__name__ == "Mine"


@pytest.mark.parametrize("name", ["my-own.py", "MyOwn.py", "my_own.py~", "notes.txt", "my_own/"])
def test_what_is_no_plugin_does_not_lie_in_their_folder(folder: Path, name: str) -> None:
    (folder / "my_own.py").write_text(ONE)
    (folder / "_shared.py").touch()
    (folder / "__pycache__").mkdir()
    assert plugins.names("runtimes") == ["my-own"]
    place = folder / name
    place.mkdir() if name.endswith("/") else place.touch()
    with pytest.raises(PluginError, match=rf"^handlers/runtimes/{place.name} is no runtime: .*a-z"):
        plugins.names("runtimes")


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
    with pytest.raises(PluginError, match=rf"^handlers/runtimes/broken\.py.*{words}"):
        plugins.load_runtime("broken")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            "    requiers = ()",
            r"has requiers: did you mean requires\? Begin a name of your own with _",
        ),
        ("    exptra = ()", "has exptra: did you mean export"),
        ("    def finnish(request): pass", "has finnish: did you mean finish"),
        ("    suffix = 'mine'", "has suffix = 'mine': it takes a dot and letters"),
        ("    suffix = '.tar.gz'", "has suffix = '.tar.gz': it takes a dot and letters"),
        (
            "    requires = 'onnx'",
            r"has requires = 'onnx': it takes tuple\[str, ...\], such as \('onn",
        ),
        ("    requires = (1,)", r"has requires = \(1,\): it takes tuple\[str, ...\]$"),
        (
            "    requires = ('onnx>=1',)",
            "has requires = .*: it takes names that Python imports, wit",
        ),
        ("    devices = ('gpu',)", r"has devices = \('gpu',\): it takes 'cpu', 'cuda' or both"),
        ("    devices = ()", r"has devices = \(\): it takes 'cpu'"),
        ("    precisions = ('int8',)", "has precisions = .*: it takes 'fp32', and what else"),
        ("    precisions = ('fp32', 'fp8')", "has precisions = .*: it takes .* of fp32, .*int8"),
        ("    static_precisions = ('int8',)", "has static_precisions = .*: it takes some of the c"),
        (
            "    varies = ('height',)",
            r"has varies = \('height',\): it takes 'height' and 'width', 'bat",
        ),
        (
            "    excluded_tasks = {'tagging': 'no'}",
            "has excluded_tasks = .*: it takes tasks by their n",
        ),
        (
            "    reproducible = True",
            r"has reproducible = True: it takes Literal\['always', 'by-proces",
        ),
        ("    options = ['cache']", r"has options = \['cache'\]: it takes Mapping\[str, Any\]$"),
        (
            "    options = {'threads': 2}",
            "has options = .*: it takes other names than batch, precisi",
        ),
        (
            "    options = {'my-own': 2}",
            "has options = .*: it takes other names than .* and a runtime",
        ),
        ("    load_choices = {'streams': (1, 2)}", "has load_choices = .*: it takes values of the"),
        ("    needs_torch = 0", "has needs_torch = 0: it takes bool$"),
        ("    streams = True", "has streams = True: it takes int$"),
        ("    traces = True", r"has traces = True: it takes a method, traces\(options\)$"),
        (
            "    def export(self, request): pass",
            "has export without @staticmethod: it is called on",
        ),
        ("    def traces(self, options): pass", "has traces without @classmethod: it is called on"),
        (
            "    @staticmethod\n    def export(): pass",
            r"has export\(\): it is called as export\(req",
        ),
        ("    def layers(self): pass", r"has layers\(\): it is called as layers\(images\)"),
        (
            "    def __init__(self, path): pass",
            r"has __init__\(path\): it is called as __init__\(pat",
        ),
        (
            "    precisions = property(lambda self: ('fp32',))",
            r"has precisions = <property .*: it takes tuple\[str, \.\.\.\]",
        ),
        (
            "    def layers(self, *, images): pass",
            r"has layers\(\*, images\): it is called as layers\(images\)",
        ),
    ],
)
def test_a_runtime_that_is_declared_wrong_says_how(folder: Path, lines: str, words: str) -> None:
    with pytest.raises(PluginError, match=rf"^handlers/runtimes/my_own\.py: Mine {words}"):
        loaded(folder, lines)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("    metric_nam = 'top-1'", "has metric_nam: did you mean metric_name"),
        ("    metric_name = ''", "has metric_name = '': it takes the name"),
        (
            "    compared_by = ('overlaps',)",
            "has compared_by = .*: it takes some of changed, iou, overlap",
        ),
        ("    compared_by = 'overlap'", r"has compared_by = 'overlap': it takes .*\('overlap',\)$"),
        (
            "    decode_settings = {'best': {1}}",
            "has decode_settings = .*: it takes values that a m",
        ),
        (
            "    decode_bounds = {'best': (0,)}",
            r"has decode_bounds = .*: it takes Mapping\[str, tuple\[float \| None, float \|",
        ),
        ("    decode_bounds = {'best': (0, 1)}", "has decode_bounds = .*: it takes the least and"),
        *(
            (
                f"    decode_settings, decode_bounds = {{'best': {default}}}, {{'best': {bounds}}}",
                "has decode_bounds = .*: it takes the least and the most, or None, of settings",
            )
            for default, bounds in ((2, (0, 1)), ("'x'", (None, 1)), (True, (0, 1)), (None, (1, 0)))
        ),
        ("    resamples = 0", "has resamples = 0: it takes a whole number from 1"),
        ("    most_labels = '2'", r"has most_labels = '2': it takes int \| None$"),
        ("    default_input = 224", r"has default_input = 224: it takes ImageInput \| None$"),
        (
            "    options = [Option('best', int, 1, '')]",
            r"has options = .*: it takes a method, opti",
        ),
        (
            "    def decode(self, settings): pass",
            r"has decode without @staticmethod: .*decode\(set",
        ),
        ("    def summary(answer): pass", "has summary without @staticmethod"),
        (
            "    def margin(self, answer): pass",
            r"has margin\(answer\): .* margin\(answer, \*\*given\)",
        ),
        (
            "    def margin(self, answer, given): return 0.5",
            r"has margin\(answer, given\): .* margin\(answer, \*\*given\)",
        ),
        (
            "    def __init__(self, name): pass",
            r"has __init__\(name\): it is called as __init__\(\)",
        ),
    ],
)
def test_a_task_that_is_declared_wrong_says_how(folder: Path, lines: str, words: str) -> None:
    with pytest.raises(PluginError, match=rf"^handlers/tasks/my_own\.py: Mine {words}"):
        task(folder, lines)


def test_settings_of_a_task_may_have_bounds(folder: Path) -> None:
    lines = "    decode_settings = {'best': None, 'most': 3, 'share': 0.5}\n"
    bounds = {"best": (0, 0.5), "most": (1, None), "share": (None, 0.5)}
    assert task(folder, f"{lines}    decode_bounds = {bounds}").decode_bounds == bounds


def test_a_method_may_be_of_python_itself(folder: Path) -> None:
    assert task(folder, "    summary = staticmethod(str)").summary(0.5) == "0.5"


def test_all_mistakes_are_told_at_once(folder: Path) -> None:
    with pytest.raises(
        PluginError, match="Mine has requiers: .*; has devices = .*; has export with"
    ):
        loaded(folder, "    requiers = devices = ()\n    def export(request): pass")


def test_names_of_its_own_and_other_forms_of_the_same_are_a_plugins_affair(folder: Path) -> None:
    lines = """
    cuts, _requiers, prepare, Colour = 3, (), None, str
    streams = property(lambda self: 2)
    @classmethod
    def export(cls, request, *more): pass
    def __call__(self, images, more=None): return ()
    """
    assert loaded(folder, lines).cuts == 3
    lines = """
    labels, top, score = (), 1, None
    @staticmethod
    def compare(expected, answer, **others): pass
    def margin(self, answer, *, top_k=1, **given): return 0.5
    """
    assert task(folder, lines)().margin([]) == 0.5


GIVEN = [
    ("margin", "([])", "None", r"None \(NoneType\): return a number"),
    ("margin", "([])", "True", r"True \(bool\): return a number"),
    ("metric", "([])", "'0.5'", r"'0\.5' \(str\): return a number"),
    (
        "compare",
        "(1, 2)",
        "True",
        r"True \(bool\): return a handlers\.task\.Difference\(same, score",
    ),
    ("draw", "([], None)", "[]", r"\[\] \(list\): return a PIL\.Image\.Image"),
    ("summary", "([])", "None", "None .*: return text"),
    ("widest", "()", "None", "None .*: return a dictionary"),
    ("decode", "({})", "None", r"None .*: return a torch\.nn\.Module"),
    ("preprocess", "(None)", "[[1]]", r".*: return a numpy array \(height, width, channels\) of u"),
    ("options", "()", "None", r"None .*: return a list of handlers\.options\.Option"),
    ("options", "()", "[1]", r"\[1\] .*: return a list of handlers\.options\.Option"),
]


@pytest.mark.parametrize(("name", "asked", "found", "words"), GIVEN)
def test_what_a_method_must_not_give_is_told_with_its_file(
    folder: Path, name: str, asked: str, found: str, words: str
) -> None:
    static = "    @staticmethod\n" if name in ("metric", "summary", "decode") else ""
    first = "*_, **__" if static else "self, *_, **__"
    made = task(folder, f"{static}    def {name}({first}): return {found}")()
    with pytest.raises(PluginError, match=rf"^handlers/tasks/my_own\.py: {name} gives {words}"):
        eval(f"made.{name}{asked}", {"made": made})


@pytest.mark.parametrize("found", ["None", "[[1]]", "arrays[0]", "(1,)"])
def test_a_runtime_gives_a_tuple_of_arrays(folder: Path, found: str) -> None:
    model = loaded(folder, f"    def __call__(self, *arrays): return {found}")(Path(), "cpu", {})
    with pytest.raises(PluginError, match=r"__call__ gives .*: return a tuple of numpy arrays, "):
        model(np.zeros((1, 2, 2, 3), np.uint8))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("'best', int, 0, '', minimum=1", "the option best with the default 0: it takes a whole"),
        ("'best', int, 1.5, ''", "the option best with the default 1.5: it takes a whole number"),
        ("'best', float, None, ''", "the option best with the default None: it takes a number"),
        (
            "'mask', str, 'jpg', '', choices=('png',)",
            "the option mask with the .*: it takes one of",
        ),
        ("'best', bool, True, ''", "the option best with kind <class 'bool'>: accepted are int"),
        (
            "'data', int, 1, ''",
            "the option data with a name of other than a-z, 0-9, _, or one of accept, b",
        ),
        ("'top-k', int, 1, ''", "the option top-k with a name of other than a-z"),
        ("'best', int, 1, ''), Option('best', int, 1, ''", "the option best twice"),
    ],
)
def test_an_option_that_no_client_could_send_is_told(folder: Path, option: str, words: str) -> None:
    made = task(folder, f"    def options(self): return [Option({option})]")()
    with pytest.raises(PluginError, match=f"^handlers/tasks/my_own.py: options gives {words}"):
        made.defaults()


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
