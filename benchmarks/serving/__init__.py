"""Serving compared side by side: ours, TorchServe's own handlers, other servers, and ceilings.

``python -m benchmarks.serving --help``; docs/benchmarks.md tells how to read what it measures.
"""
