#!/usr/bin/env bash
# Build model archives into model-store/: ./build_mar.sh [NAME ...] [--runtime R] [--version V] ...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
exec .venv/bin/python -m marsmith build "$@"
