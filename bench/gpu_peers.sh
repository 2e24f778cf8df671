#!/usr/bin/env bash
# ./bazelw run //bench:gpu_peers -- [--quick] [--help] ...
# Runs gpu_peers.py with the packages of requirements.txt.
set -euo pipefail

# Bazel names the folder after the workspace or, from version 7 on, "_main".
for root in "$0.runfiles/posattn" "$0.runfiles/_main" "$PWD"; do
    if [ -f "$root/bench/gpu_peers.py" ]; then break; fi
done
bench=$root/bench
source "$root/tools/venv.sh"
use_venv bench "$bench/requirements.txt" "$bench/requirements_no_deps.txt"

export PYTHONDONTWRITEBYTECODE=1  # the sources may be read-only
exec "${python[@]}" "$bench/gpu_peers.py" \
    --kernels "$bench/libgpu_kernels.so" --library "$root/runtime/c_api/libposattn_cuda.so" "$@"
