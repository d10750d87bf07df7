#!/usr/bin/env bash
# Everything about a GPU in one command of at most eight minutes: whether graphs compute there what
# torch computes, and how long models of real size take. Writes benchmarks/results/gpu.json.
#
#   bash benchmarks/gpu_session.sh [--packages FOLDER] [OPTION...]
#   bash benchmarks/gpu_session.sh --dry-run       small shapes on the CPU, in about a minute
#
# Needs python with torch, transformers, onnx and onnxscript, but no network. --packages names a
# folder with what python lacks there: wheels, or a tree of packages packed as .tar.xz and cut into
# part.00, part.01, ..., with its sha256 in `sum`. An ONNX Runtime for CUDA found in it comes before
# one for the CPU. Other options are those of gpu_session.py; --help lists them.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
python=${PYTHON:-python3}
site=""

if [ "${1:-}" = --packages ]; then
    packages=$(cd "$2" && pwd)
    shift 2
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    if compgen -G "$packages/part.*" > /dev/null; then
        archive=$site/$(awk '{print $2; exit}' "$packages/sum")
        cat "$packages"/part.* > "$archive"
        (cd "$site" && sha256sum --check --quiet "$packages/sum")
        "$python" -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="data")' "$archive" "$site"
        rm "$archive"
    fi
    if compgen -G "$packages/*.whl" > /dev/null; then
        "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$packages"/*.whl
    fi
fi

# ONNX Runtime looks for CUDA's libraries beside itself; they lie in the packages that torch brought.
libraries=$("$python" - <<'PYTHON'
import sysconfig
from pathlib import Path

found = Path(sysconfig.get_paths()["purelib"]).glob("nvidia/*/lib")
print(":".join(map(str, sorted(found))))
PYTHON
)
export LD_LIBRARY_PATH=${libraries}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export PYTHONPATH=${site:+$site:}$root:$root/export${PYTHONPATH:+:$PYTHONPATH}
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
# Phases are forked, and a process that has asked CUDA anything cannot be: torch asks the driver.
export PYTORCH_NVML_BASED_CUDA_CHECK=1
"$python" "$here/gpu_session.py" "$@"
