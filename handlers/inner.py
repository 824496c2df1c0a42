"""Which operations of an exported graph lie inside the network: what few bits may compute."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

# What the network's own modules are called in a ``Servable``; its normalisation is none of them.
NETWORK = "network."


def between(graph: Mapping[str, Iterable[str]], layers: Collection[str]) -> set[str]:
    """``layers`` and what lies on a way from one of them to another.

    ``graph`` has for each node, in an order of computing, the nodes that it reads. The
    normalisation in front of the network and the head behind it lie on no such way.
    """
    behind, before = set(layers), set(layers)
    for node, read in graph.items():
        if not behind.isdisjoint(read):
            behind.add(node)
    for node in reversed(list(graph)):
        if node in before:
            before.update(graph[node])
    return behind & before
