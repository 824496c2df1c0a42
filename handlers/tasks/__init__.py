"""One file per task, found by its name; ``handlers/task.py`` has the contract."""
