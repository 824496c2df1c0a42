#!/usr/bin/env bash
# Build model archives into model-store/: ./build_mar.sh [NAME ...] [--runtime R] [--version V] ...
set -euo pipefail
# Paths on the command line are relative to where the caller stands.
export MARSMITH_CALLER="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")"
if [ ! -x .venv/bin/python ]; then
    echo "error: no environment in $PWD/.venv: make it with \`make env\`" >&2
    exit 1
fi
exec .venv/bin/python -m marsmith build "$@"
