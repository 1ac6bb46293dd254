# Sourced by the other scripts: a virtual environment in .venv with this project in it.
# usage: environment [EXTRA]      PYTHON=python3.12 chooses the interpreter.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

environment() {
    local extra=${1:-} venv=$root/.venv python=${PYTHON:-python3} stamp
    [ ! -e "$venv/bin/python" ] || python=$venv/bin/python
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
        echo "$python is not Python 3.11, 3.12 or 3.13; set PYTHON=/path/to/one" >&2
        exit 2
    }
    # Installed again when the dependencies change; the package itself is linked, not copied.
    stamp=$venv/.installed-${extra:-core}-$(cksum <"$root/pyproject.toml" | cut -d' ' -f1)
    if [ ! -e "$stamp" ]; then
        echo "installing into $venv (once)"
        [ "$python" = "$venv/bin/python" ] || "$python" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
            --editable "$root${extra:+[$extra]}"
        touch "$stamp"
    fi
    PATH=$venv/bin:$PATH
}

# An ideal-jax that is on the path already (a container, an active environment) is used as it is.
active_or_installed() {
    command -v ideal-jax >/dev/null || environment "$@"
}
