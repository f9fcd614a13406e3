#!/usr/bin/env bash
# Checks, throughput and tables on a machine with an NVIDIA card, Python and torch; see README.md beside this file.
#
#   Testing/gpu/run.sh --carried FOLDER --out OUT [--minutes 10]     FOLDER is what prepare.sh made
#   Testing/gpu/run.sh --dry-run --out OUT                           tiny, on the processor
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
data=()
if [ "${1:-}" = --carried ]; then
	carried=$2
	shift 2
	[ -d "$carried/data" ] && data=(--data "$carried/data")
	if compgen -G "$carried/wheels/*.whl" >/dev/null; then
		site=$(mktemp -d)
		trap 'rm -rf "$site"' EXIT
		"$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$carried"/wheels/*.whl
		export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
	fi
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONUNBUFFERED=1
"$python" -m Testing.gpu.main ${data[@]+"${data[@]}"} "$@"
