#!/usr/bin/env bash
# Make the folder that run.sh carries along: preprocessed data and wheels, 60 MiB at most; see README.md beside this file.
#
#   Testing/gpu/prepare.sh --data DIR --out FOLDER [--python-version 3.12] [--have NAME,NAME]
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" "${PYTHON:-.venv/bin/python}" -m Testing.gpu.prepare "$@"
