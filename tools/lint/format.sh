#!/bin/sh
# Checks that every C++ file is formatted as .clang-format says; `format.sh --fix` formats them.
set -eu
cd "$(dirname "$0")/../.."

if ! command -v clang-format >/dev/null; then
    echo "SKIP: clang-format is not installed"
    exit 0
fi
mode="--dry-run --Werror"
if [ "${1:-}" = --fix ]; then mode=-i; fi
git ls-files -z '*.cpp' '*.h' | xargs -0 clang-format --style=file $mode
