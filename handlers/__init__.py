"""marsmith's TorchServe handlers: this package travels whole inside every archive.

It never imports the build pipeline (``marsmith``). A task is one file in ``handlers/tasks``, a
runtime one file in ``handlers/runtimes``; both are found by their file's name.
"""
