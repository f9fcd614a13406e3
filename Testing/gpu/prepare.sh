#!/usr/bin/env bash
# Make the folder that run.sh carries along: preprocessed data and wheels, 60 MiB at most; see README.md beside this file.
#
#   Testing/gpu/prepare.sh --data DIR --out FOLDER [--python-version 3.12] [--have NAME,NAME]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" "${PYTHON:-$root/.venv/bin/python}" -m Testing.gpu.prepare "$@"
