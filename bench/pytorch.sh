#!/usr/bin/env bash
# ./bazelw run //bench:pytorch -- [--quick] [--help] ...
# Runs pytorch.py with the packages of requirements.txt, which it installs once, in a folder of the user's cache.
# --venv DIR as the first argument: with those of that virtual environment.
set -euo pipefail

# Bazel names the folder after the workspace or, from version 7 on, "_main".
for root in "$PWD" "$0.runfiles/posattn" "$0.runfiles/_main"; do
    if [ -f "$root/bench/pytorch.py" ]; then break; fi
done
bench=$root/bench

# Makes the virtual environment; where Debian's Python comes without the means to make one, a plain folder of packages.
install() {
    echo "Installing PyTorch and symm-learning into $1 (some gigabytes, once)" >&2
    rm -rf "$1.part"
    if python3 -m venv "$1.part" >/dev/null 2>&1; then
        "$1.part/bin/python" -m pip install --quiet --requirement "$bench/requirements.txt" >&2
    else
        rm -rf "$1.part"
        python3 -m pip install --quiet --target "$1.part/packages" --requirement "$bench/requirements.txt" >&2
    fi
    rm -rf "$1"
    mv "$1.part" "$1"
}

if [ "${1:-}" = --venv ]; then
    venv=$2
    shift 2
else
    version=$(sha256sum "$bench/requirements.txt" | cut -c1-12)
    venv=${XDG_CACHE_HOME:-$HOME/.cache}/posattn/bench-$version
    if [ ! -d "$venv" ]; then install "$venv"; fi
fi

python=$venv/bin/python
if [ ! -x "$python" ]; then
    python=python3
    export PYTHONPATH="$venv/packages"
fi
export PYTHONDONTWRITEBYTECODE=1  # the sources may be read-only
exec "$python" "$bench/pytorch.py" \
    --library "$root/runtime/c_api/libposattn.so" --peak "$bench/libpeak.so" "$@"
