"""Do weights fit a network? If not, in words: another number of classes, or another network."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from handlers.errors import WeightsError

# What DistributedDataParallel, torch.compile and Lightning modules put before every name.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")

Shapes = dict[str, tuple[int, ...]]


def unwrapped(state: dict[str, Tensor], network: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """The state_dict without a training tool's prefixes, and notes that say what was taken off.

    A prefix is taken off where every name has it and the network's own names do not.
    """
    # A copy keeps the versions of the modules, by which some of them read a file.
    kept = copy.copy(state)
    own, notes = network.state_dict().keys(), []
    while kept and not own & kept.keys():
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in kept)), None)
        if prefix is None:
            break
        kept = _without(prefix, kept)
        notes.append(f'the prefix "{prefix}" was taken off all {len(kept)} names of the weights')
    return kept, notes


def _without(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    taken = OrderedDict((key.removeprefix(prefix), value) for key, value in state.items())
    versions = getattr(state, "_metadata", {})
    # A module is named there without the dot that ends its prefix.
    module = prefix.removesuffix(".")
    taken._metadata = {  # type: ignore[attr-defined]
        key.removeprefix(module).removeprefix("."): value
        for key, value in versions.items()
        if f"{key}.".startswith(prefix)
    }
    return taken


def check(
    state: Mapping[str, Tensor], network: nn.Module, name: str, classes: int | None = None
) -> None:
    """Raise WeightsError that says in what ``state`` differs from the network called ``name``.

    ``classes`` is what it was built with, where that is known.
    """
    wanted, found = _shapes(network.state_dict()), _shapes(state)
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    common = wanted.keys() & found.keys()
    # A lazy layer takes whatever shape comes.
    lazy = {key for key, value in network.state_dict().items() if is_lazy(value)}
    other = sorted(key for key in common - lazy if wanted[key] != found[key])
    if not (missing or extra or other):
        return
    if not missing and not extra and (counts := _class_counts(other, wanted, found)):
        ours, theirs = _scaled(counts, classes)
        raise WeightsError(
            f"the weights are of {theirs} classes (found: {other[0]} {found[other[0]]}), {name} is "
            f"built with {ours} (expected: {wanted[other[0]]}): say num_classes {theirs}, or take "
            f"the weights that were trained for {ours}"
        )
    fitting = len(common) - len(other)
    hint = f"{fitting} of the network's {len(wanted)} tensors are in the file with their shapes"
    parts = {
        "missing": missing[:3],
        "unexpected": extra[:3],
        "of another shape": [f"{key} {found[key]}, not {wanted[key]}" for key in other[:2]],
    }
    listing = "; ".join(f"{what}: {', '.join(keys)}" for what, keys in parts.items() if keys)
    raise WeightsError(
        f"the weights need another architecture than {name}, or other arguments of it: {hint} "
        f"({listing}){_prefix_hint(extra, missing) or _head_hint(extra, missing)}"
    )


def _class_counts(other: list[str], wanted: Shapes, found: Shapes) -> tuple[int, int] | None:
    """Outputs of the network and of the weights, where only the length of last layers differs.

    Boxes have four outputs a class: all lengths are in the same proportion, and the least counts.
    """
    # A layer of 256 where 512 is wanted lies between others, whose inputs differ with it.
    if not all(wanted[key][1:] == found[key][1:] and wanted[key] for key in other):
        return None
    pairs = sorted({(wanted[key][0], found[key][0]) for key in other})
    ours, theirs = pairs[0]
    return (ours, theirs) if all(a * theirs == b * ours for a, b in pairs) else None


def _scaled(counts: tuple[int, int], classes: int | None) -> tuple[int, int]:
    """Counts of classes from counts of outputs: some detectors have several outputs a class."""
    ours, theirs = counts
    if classes and theirs * classes % ours == 0:
        return classes, theirs * classes // ours
    return counts


def _prefix_hint(extra: list[str], missing: list[str]) -> str:
    """What to do where the network's names lie within others of the file."""
    for key in extra:
        for name in missing:
            if key.endswith(f".{name}"):
                prefix = key.removesuffix(name)
                return (
                    f'; names begin with "{prefix}": keep those alone, {{k.removeprefix("{prefix}")'
                    f': v for k, v in state.items() if k.startswith("{prefix}")}}, and save them'
                )
    return ""


def _head_hint(extra: list[str], missing: list[str]) -> str:
    """What to do where a layer of the network was replaced by several."""
    for name in missing:
        layer = name.rpartition(".")[0]
        if layer and any(key.startswith(f"{layer}.") for key in extra):
            return (
                f'; "{layer}" was replaced: name a function that makes the network so, --arch '
                'my_model.py:make (docs/own-models.md, "A network of torchvision")'
            )
    return ""


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    # Frozen batch norms count no batches; whether they are to be frozen is seen by that.
    counted = ".num_batches_tracked"
    return {
        key: () if is_lazy(value) else tuple(value.shape)
        for key, value in state.items()
        if not key.endswith(counted)
    }
