# The environment for TorchServe: `. ./env.sh` in the project's folder (sh, bash or zsh).
# Then `torchserve --start --models all` works as its manual says; sourcing it again does no harm.
# It checks no signatures (`require_signature`): only `marsmith serve` does.
if [ ! -f marsmith/environment.py ]; then
    echo "error: no marsmith/environment.py in $PWD: source env.sh in the project's folder" >&2
    # `return` leaves the sourced file and not the shell
    return 1
fi
if [ -x .venv/bin/python ]; then marsmith_python=.venv/bin/python; else marsmith_python=python3; fi
if marsmith_lines="$("$marsmith_python" -m marsmith.environment)"; then
    eval "$marsmith_lines"
    unset marsmith_python marsmith_lines
else
    unset marsmith_python marsmith_lines
    return 1
fi
