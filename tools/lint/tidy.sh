#!/bin/sh
# Runs clang-tidy over the C++ files given, or over all of them. Needs a build first: some headers come out of it.
set -eu
cd "$(dirname "$0")/../.."

if ! command -v clang-tidy >/dev/null; then
    echo "SKIP: clang-tidy is not installed"
    exit 0
fi
external=$(./bazelw info output_base 2>/dev/null)/external
halide=$(ls -d "$external"/*halide/include | head -n 1)
if [ $# = 0 ]; then set -- $(git ls-files '*.cpp'); fi
printf '%s\n' "$@" |
    xargs -P "${JOBS:-$(nproc)}" -n 1 sh -c '
        if ! report=$(clang-tidy --quiet "$2" -- -std=c++17 -I. -Ibazel-bin -Itests/consumer -isystem "$1" 2>&1); then
            echo "$2:"; echo "$report"
            exit 1
        fi' sh "$halide"
