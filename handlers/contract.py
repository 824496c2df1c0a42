"""What the class of a plug-in must be and what its methods must give; mistakes name its file.

Types are those of the base's annotations and arguments those of the base's methods, so that a new
part of a contract is checked as soon as the base has it.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from numbers import Integral, Real
from types import BuiltinFunctionType, FunctionType, UnionType
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import numpy as np
from PIL import Image

from handlers.closeness import DEFAULTS, Closeness
from handlers.errors import BadRequest, PluginError
from handlers.options import Option, shown, within

# A name as like to one of a contract as this is a slip of the pen.
_LIKE = 0.66
# What a worker says itself to a runtime, among the runtime's own options.
_TOLD = {"threads", "batch", "precision"}
# What of handlers.closeness a task may compare by beside the scores, which all have; what halves
# give no task compares.
_COMPARED = {each.name for each in fields(Closeness)} - {"outputs", "answers", "golden", "features"}
# Fields of a request that are no options.
_FIELDS = {"accept", "body", "data", "instances", "parameters"}
# Of the input of a runtime, which may vary.
_AXES: tuple[set[str], ...] = ({"batch", "height", "width"}, {"height", "width"}, {"batch"}, set())
_YAML = (bool, int, float, str, list, dict, type(None))
# What is right already, for a plug-in is asked for all the time.
_HELD: set[type] = set()


def file_of(kind: type) -> str:
    """The file that a plug-in's class is in, for messages."""
    return f"{kind.__module__.replace('.', '/')}.py"


def hold(kind: type, base: Any) -> None:
    """Hold a plug-in's class to the contract of ``base``: what it declares now, what its methods
    give at every call. Raises PluginError that names every mistake."""
    if kind in _HELD:
        return
    parts = _parts(base)
    own = {name: inspect.getattr_static(kind, name) for name in dir(kind)}
    own = {name: part for name, part in own.items() if part is not parts.get(name)}
    mistakes = [*_lacking(kind, base), *_misspelt(kind, parts.keys() | _hints(base).keys())]
    mistakes += [*_misdeclared(own, kind, base), *_misfits(own, parts)]
    if mistakes:
        raise PluginError(f"{file_of(kind)}: {kind.__name__} {'; '.join(mistakes)}")
    for name in own.keys() & _GIVES.keys() & parts.keys():
        if callable(getattr(kind, name)):
            setattr(kind, name, _watched(own[name], name, file_of(kind)))
    _HELD.add(kind)


# What a class declares ----------------------------------------------------------------------------


def _parts(base: Any) -> dict[str, Any]:
    """The parts of a contract, as they are in the classes that say them."""
    found: dict[str, Any] = {}
    for said in (*base.optional, base):
        names = [name for name in dir(said) if name[0] != "_"] + ["__init__", "__call__"]
        found |= {n: inspect.getattr_static(said, n) for n in names if hasattr(said, n)}
    return found


def _hints(base: Any) -> dict[str, Any]:
    """The types of the parts that are values, by their names."""
    found = get_type_hints(base)
    return {n: get_args(h)[0] if get_origin(h) is ClassVar else h for n, h in found.items()}


def _of_class(base: Any) -> set[str]:
    """Names of the values that are read on the class."""
    return {n for n, hint in get_type_hints(base).items() if get_origin(hint) is ClassVar}


def _lacking(kind: type, base: Any) -> Iterator[str]:
    missing = sorted(getattr(kind, "__abstractmethods__", ()))
    missing += [name for name in base.required if not hasattr(kind, name)]
    if missing:
        yield f"lacks {', '.join(missing)}"


def _misspelt(kind: type, known: set[str]) -> Iterator[str]:
    for name in sorted(vars(kind).keys() - known):
        # A slip changes no name's length by more than a letter.
        near = [each for each in known if abs(len(each) - len(name)) < 2 and each[0] != "_"]
        if name[0] != "_" and (found := difflib.get_close_matches(name, near, 1, _LIKE)):
            yield f"has {name}: did you mean {found[0]}? Begin a name of your own with _"


def _misdeclared(own: Mapping[str, Any], kind: type, base: Any) -> Iterator[str]:
    """Values of another type than the base's annotation says, or else those that mean nothing."""
    hints, of_class = _hints(base), _of_class(base)
    # A property has a value on an instance alone.
    excused = {n for n, part in own.items() if isinstance(part, property)} - of_class
    given = {n: own[n] for n in (hints.keys() & own.keys()) - excused}
    wrong = {n: _words(hints[n], value) for n, value in given.items() if not _fits(value, hints[n])}
    if not wrong:
        rules = {name: _VALUES[name] for name in given.keys() & _VALUES.keys()}
        wrong = {n: words for n, (means, words) in rules.items() if not means(given[n], kind)}
    for name in sorted(wrong):
        yield f"has {name} = {shown(given[name])}: it takes {wrong[name]}"


def _words(hint: Any, value: Any) -> str:
    """A type as the base's file has it; for one text where several are wanted, how to write it."""
    words = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
    tip = f", such as ({value!r},)" if isinstance(value, str) and get_origin(hint) is tuple else ""
    return re.sub(r"\b(\w+\.)+(?=\w)", "", words) + tip


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        wanted = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(value) == len(wanted) and all(map(_fits, value, wanted))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _fits(key, inner[0]) and _fits(each, inner[1]) for key, each in value.items()
        )
    if hint is float:
        return type(value) in (int, float)
    if hint in (int, bool):
        # True is an int.
        return type(value) is hint
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


def _names(kind: str) -> set[str]:
    from handlers import plugins

    return set(plugins.names(kind))


def _bounds(kind: Any, name: str, least: float | None, most: float | None) -> bool:
    """Whether a task's class may bound one of its settings so: a number, or one of the network."""
    if name not in kind.decode_settings:
        return False
    default = kind.decode_settings[name]
    ends = (least, most) if default is None else (default,)
    return all(each is None or (_is_number(each) and within(each, least, most)) for each in ends)


# Beyond types: whether a value means something, by the class that has it, and what does.
_VALUES: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "suffix": (
        lambda value, _: bool(re.fullmatch(r"\.\w+", value)),
        "a dot and letters or digits, such as '.pt2'",
    ),
    "devices": (
        lambda value, _: bool(value) and set(value) <= {"cpu", "cuda"},
        "'cpu', 'cuda' or both",
    ),
    "precisions": (
        lambda value, _: "fp32" in value and set(value) <= set(DEFAULTS),
        f"'fp32', and what else it computes in of {', '.join(DEFAULTS)}",
    ),
    "static_precisions": (
        lambda value, kind: set(value) <= set(kind.precisions),
        "some of the class's precisions",
    ),
    "varies": (
        lambda value, _: set(value) in _AXES,
        "'height' and 'width', 'batch', all of them or none",
    ),
    "excluded_tasks": (lambda value, _: set(value) <= _names("tasks"), "tasks by their names"),
    "options": (
        lambda value, _: not (_TOLD | _names("runtimes")) & set(value),
        f"other names than {', '.join(sorted(_TOLD))}, which every worker sets, and a runtime's",
    ),
    "load_choices": (
        lambda value, kind: set(value) <= set(kind.options),
        "values of the class's options",
    ),
    "compared_by": (
        lambda value, _: set(value) <= _COMPARED,
        f"some of {', '.join(sorted(_COMPARED))}",
    ),
    "decode_settings": (
        lambda value, _: all(type(each) in _YAML for each in value.values()),
        "values that a model file can have: numbers, text, lists, mappings, true, false, null",
    ),
    "decode_bounds": (
        lambda value, kind: all(_bounds(kind, name, *each) for name, each in value.items()),
        "the least and the most, or None, of settings that are numbers, whose defaults are between",
    ),
    "metric_name": (lambda value, _: bool(value.strip()), "the name of the metric"),
    "resamples": (lambda value, _: value >= 1, "a whole number from 1"),
    **dict.fromkeys(
        ("requires", "export_requires", "int8_requires"),
        (
            lambda value, _: all(name.isidentifier() for name in value),
            "names that Python imports, without versions",
        ),
    ),
}


# What its methods take and give -------------------------------------------------------------------


def _misfits(own: Mapping[str, Any], parts: Mapping[str, Any]) -> Iterator[str]:
    """Methods that cannot be called as those of the contract are."""
    for name in sorted(own.keys() & parts.keys()):
        theirs, ours = parts[name], own[name]
        if not isinstance(theirs, (FunctionType, staticmethod, classmethod)):
            continue
        called = _arguments(theirs, theirs)
        form = _form(name, called)
        if isinstance(getattr(ours, "__func__", ours), type | BuiltinFunctionType):
            # Such as ``staticmethod(str)``, of which Python does not tell what it takes.
            continue
        if not callable(getattr(ours, "__func__", ours)):
            yield f"has {name} = {shown(ours)}: it takes a method, {form}"
        elif not isinstance(theirs, FunctionType) and isinstance(ours, FunctionType):
            yield f"has {name} without @{type(theirs).__name__}: it is called on the class, {form}"
        elif not _bind(taken := _arguments(ours, theirs), called):
            yield f"has {_form(name, taken)}: it is called as {form}"


def _form(name: str, taken: list[inspect.Parameter]) -> str:
    """The first line of such a method, without types."""
    return name + str(inspect.Signature([each.replace(annotation=each.empty) for each in taken]))


def _arguments(part: Any, theirs: Any) -> list[inspect.Parameter]:
    """What callers give to a method that is called as the contract's is."""
    said = list(inspect.signature(getattr(part, "__func__", part)).parameters.values())
    bound = isinstance(theirs, FunctionType) and not isinstance(part, staticmethod)
    return said[bound or isinstance(part, classmethod) :]


def _bind(taken: list[inspect.Parameter], called: list[inspect.Parameter]) -> bool:
    kinds = [each.kind for each in called]
    # A name that nobody has for an argument of his own.
    named = {"any option": None} if inspect.Parameter.VAR_KEYWORD in kinds else {}
    try:
        inspect.Signature(taken).bind(*[None] * (len(kinds) - len(named)), **named)
    except TypeError:
        return False
    return True


def _watched(part: Any, name: str, file: str) -> Any:
    """The same method, which raises PluginError for what it must not give."""
    method, problem = getattr(part, "__func__", part), _GIVES[name]

    @functools.wraps(method)
    def watched(*arguments: Any, **named: Any) -> Any:
        found = method(*arguments, **named)
        if said := problem(found):
            raise PluginError(f"{file}: {name} gives {said}")
        return found

    return type(part)(watched) if isinstance(part, (staticmethod, classmethod)) else watched


def _is(fits: Callable[[Any], bool], wanted: str) -> Callable[[Any], str]:
    """Says what is wrong with what a method gave; nothing where it ``fits``."""

    def problem(found: Any) -> str:
        return "" if fits(found) else f"{_line(found)} ({type(found).__name__}): return {wanted}"

    return problem


def _line(found: Any) -> str:
    # An array is shown on several.
    return " ".join(shown(found).split())


def _is_module(found: Any) -> bool:
    # By name, for most workers do without torch.
    names = {f"{each.__module__}.{each.__name__}" for each in type(found).__mro__}
    return "torch.nn.modules.module.Module" in names


def _is_difference(found: Any) -> bool:
    from handlers.task import Difference

    return isinstance(found, Difference) and _is_number(found.score)


def _is_number(found: Any) -> bool:
    return isinstance(found, Real) and not isinstance(found, bool)


def _is_pixels(found: Any) -> bool:
    return isinstance(found, np.ndarray) and found.dtype == np.uint8 and found.ndim == 3


def _options(found: Any) -> str:
    if not (isinstance(found, list) and all(isinstance(each, Option) for each in found)):
        return f"{_line(found)} ({type(found).__name__}): return a list of handlers.options.Option"
    names = [each.name for each in found]
    if twice := {name for name in names if names.count(name) > 1}:
        return f"the option {min(twice)} twice"
    return next((f"the option {each.name} {said}" for each in found if (said := _option(each))), "")


def _option(option: Option) -> str:
    if not re.fullmatch("[a-z][a-z0-9_]*", option.name) or option.name in _FIELDS:
        taken = ", ".join(sorted(_FIELDS))
        return (
            f"with a name of other than a-z, 0-9, _, or one of {taken}, which mean something else"
        )
    if option.kind not in (int, float, str):
        return f"with kind {shown(option.kind)}: accepted are int, float and str"
    try:
        fits = option.parse(option.default) == option.default
    except BadRequest:
        fits = False
    default = shown(option.default)
    return "" if fits else f"with the default {default}: it takes {option.accepted()}"


_DICT = _is(lambda found: isinstance(found, dict), "a dictionary")
_ARRAYS = "numpy arrays, each with the pictures of the batch as its first axis"
_MODULE = _is(_is_module, "a torch.nn.Module")
_NUMBER = _is(_is_number, "a number")

_GIVES: dict[str, Callable[[Any], str]] = {
    "__call__": _is(
        lambda found: (
            isinstance(found, tuple) and all(isinstance(each, np.ndarray) for each in found)
        ),
        f"a tuple of {_ARRAYS}",
    ),
    "named": _DICT,
    "layers": _DICT,
    "options": _options,
    "fixed": _DICT,
    "settled": _DICT,
    "widest": _DICT,
    "drawing_options": _DICT,
    "adapt": _MODULE,
    "decode": _MODULE,
    "preprocess": _is(_is_pixels, "a numpy array (height, width, channels) of uint8"),
    "draw": _is(lambda found: isinstance(found, Image.Image), "a PIL.Image.Image"),
    "compare": _is(_is_difference, "a handlers.task.Difference(same, score, detail)"),
    "margin": _NUMBER,
    "metric": _NUMBER,
    "summary": _is(lambda found: isinstance(found, str), "text"),
    "classes": _is(
        lambda found: found is None or isinstance(found, Integral), "a whole number, or None"
    ),
}
