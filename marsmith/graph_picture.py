"""A picture of an ONNX graph: a box for each module, frames around those of one parent."""

from __future__ import annotations

import html
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from handlers.errors import ExportError
from handlers.onnx_names import WEIGHTED
from marsmith.graphs import Group, require

FORMATS = (".svg", ".png")
# Fill and border by what a group computes.
_COLORS = {
    "convolution": ("#dbeafe", "#3b82f6"),
    "product": ("#dcfce7", "#22a55b"),
    "other": ("#f3f4f6", "#9ca3af"),
}
_FONT = "DejaVu Sans"


def save(
    path: Path,
    title: str,
    groups: list[Group],
    edges: dict[tuple[int, int], str],
    kinds: dict[str, str],
) -> None:
    """Write an SVG or PNG; ``kinds`` are the classes of modules. Raises ExportError."""
    if path.suffix not in FORMATS:
        raise ExportError(f"{path.name}: a picture is saved as {' or '.join(FORMATS)}")
    require("pygraphviz")
    import pygraphviz

    graph = pygraphviz.AGraph(directed=True, label=title, labelloc="t", fontname=_FONT)
    graph.graph_attr.update(ranksep="0.3", nodesep="0.35", fontsize="16", dpi="110", pad="0.2")
    graph.node_attr.update(shape="box", style="rounded,filled", fontname=_FONT, fontsize="10")
    graph.edge_attr.update(fontname=_FONT, fontsize="8", color="#6b7280", fontcolor="#4b5563")
    graph.add_node(-1, label="input", shape="plaintext", style="")
    frames = _frames(groups, edges)
    for number, group in enumerate(groups):
        fill, border = _COLORS[_color(group)]
        label = _label(group, frames.get(number, ""), kinds)
        graph.add_node(number, label=label, fillcolor=fill, color=border, margin="0.12,0.06")
    for parent in sorted(set(frames.values())):
        inside = [number for number, frame in frames.items() if frame == parent]
        frame = graph.add_subgraph(inside, name=f"cluster_{parent}")
        frame.graph_attr.update(label=_named(parent, "", kinds), labeljust="l", fontsize="10")
        frame.graph_attr.update(style="rounded", color="#d1d5db", fontcolor="#4b5563")
    for (start, end), shape in edges.items():
        graph.add_edge(start, end, label=f" {shape}" if shape else "")
    # Given a path, pygraphviz opens it in a way that fails on Python 3.11.2, which Debian 12 has.
    path.write_bytes(graph.draw(format=path.suffix[1:], prog="dot"))


def _frames(groups: list[Group], edges: Iterable[tuple[int, int]]) -> dict[int, str]:
    """The parent of each group that stands beside others of its parent, where a frame around them
    is not left and entered again: such a frame would turn arrows upwards."""
    parents = [group.module.rpartition(".")[0] for group in groups]
    frames: dict[int, str] = {}
    for parent in dict.fromkeys(parents):
        inside = [number for number, each in enumerate(parents) if each == parent]
        trial = frames | dict.fromkeys(inside, parent)
        several = len({groups[number].module for number in inside}) > 1
        if parent and several and _acyclic(trial, edges):
            frames = trial
    return frames


def _acyclic(frames: dict[int, str], edges: Iterable[tuple[int, int]]) -> bool:
    """Whether the graph has no cycle when each frame is one node."""
    before: dict[int | str, set[int | str]] = {}
    for start, end in edges:
        first, second = frames.get(start, start), frames.get(end, end)
        if first != second:
            before.setdefault(second, set()).add(first)
    try:
        TopologicalSorter(before).prepare()
    except CycleError:
        return False
    return True


def _label(group: Group, parent: str, kinds: dict[str, str]) -> Any:
    held = f"{_short(group.parameters)} weights" if group.parameters >= 10 else ""
    lines = [html.escape(line) for line in (group.summary(), held) if line]
    rest = "".join(f'<br/><font point-size="9" color="#4b5563">{line}</font>' for line in lines)
    return f"<{_named(group.module, parent, kinds, bold=True)}{rest}>"


def _named(module: str, parent: str, kinds: dict[str, str], bold: bool = False) -> str:
    """A module by its name within ``parent`` and its class."""
    name = module.removeprefix(f"{parent}.") if parent else module
    kind = kinds.get(module, "")
    if not bold:
        return f"{name}  {kind}"
    return f"<b>{html.escape(name)}</b>  {html.escape(kind)}"


def _color(group: Group) -> str:
    if any(kind.startswith("Conv") for kind in group.kinds if kind in WEIGHTED):
        return "convolution"
    return "product" if any(kind in WEIGHTED for kind in group.kinds) else "other"


def _short(count: int) -> str:
    for factor, unit in ((1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return str(count)
