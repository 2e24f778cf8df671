# To be sourced by scripts that `bazel run` starts and that need Python packages.
#
#   use_venv NAME REQUIREMENTS [REQUIREMENTS_WITHOUT_DEPENDENCIES]
#
# Installs the packages once, in a folder of the user's cache that depends on what is in the files, and sets the array
# `python` to the command that runs a program with them:
#
#   use_venv bench "$bench/requirements.txt"
#   exec "${python[@]}" "$bench/peers.py" "$@"

# Where Debian's Python comes without the means to make a virtual environment, a plain folder of packages serves.
install_venv() {
    local to=$1 requirements=$2 without_dependencies=${3:-}
    local pip part=$to.part
    rm -rf "$part"
    if python3 -m venv "$part" >/dev/null 2>&1; then
        pip=("$part/bin/python" -m pip install --quiet --disable-pip-version-check)
    else
        rm -rf "$part"
        pip=(python3 -m pip install --quiet --disable-pip-version-check --target "$part/packages")
    fi
    "${pip[@]}" --requirement "$requirements" >&2
    if [ -n "$without_dependencies" ]; then "${pip[@]}" --no-deps --requirement "$without_dependencies" >&2; fi
    rm -rf "$to"
    mv "$part" "$to"
}

use_venv() {
    local name=$1 version venv
    shift
    version=$({ python3 --version && cat "$@"; } | sha256sum | cut -c1-12)
    venv=${XDG_CACHE_HOME:-$HOME/.cache}/posattn/$name-$version
    if [ ! -d "$venv" ]; then
        mkdir -p "$(dirname "$venv")"
        (
            flock 9  # a second run waits for the first one's packages
            if [ ! -d "$venv" ]; then
                echo "Installing Python packages into $venv (once)" >&2
                install_venv "$venv" "$@"
            fi
        ) 9>"$venv.lock"
    fi
    if [ -x "$venv/bin/python" ]; then
        python=("$venv/bin/python")
    else
        python=(env "PYTHONPATH=$venv/packages" python3)
    fi
}
