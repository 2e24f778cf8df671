#!/usr/bin/env bash
# ./bazelw run //bench:peers -- [--quick] [--help] ...
# Runs peers.py with the packages of requirements.txt. --venv DIR as the first argument: with those of that virtual
# environment.
set -euo pipefail

# Bazel names the folder after the workspace or, from version 7 on, "_main".
for root in "$0.runfiles/posattn" "$0.runfiles/_main" "$PWD"; do
    if [ -f "$root/bench/peers.py" ]; then break; fi
done
bench=$root/bench

if [ "${1:-}" = --venv ]; then
    python=("$2/bin/python")
    shift 2
else
    source "$root/tools/venv.sh"
    # Of espnet two files are used, and none of the many packages that the rest needs.
    use_venv bench "$bench/requirements.txt" "$bench/requirements_no_deps.txt"
fi

export PYTHONDONTWRITEBYTECODE=1  # the sources may be read-only
exec "${python[@]}" "$bench/peers.py" \
    --library "$root/runtime/c_api/libposattn.so" --peak "$bench/libpeak.so" "$@"
