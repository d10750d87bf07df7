# Steps that .ci/run and .ci/full share. Sourced, not run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore SEGAGENT_CACHE="$work/cache"
python=${PYTHON:-python3}

step() {
    printf '\n== %s (%ss)\n' "$1" "$SECONDS"
}

fresh() { # fresh NAME [PYTHON]: an empty virtual environment
    "${2:-$python}" -m venv "$work/$1"
    "$work/$1/bin/pip" install -q --upgrade pip
}

uv() { # from an environment of its own, made at the first call; uv reads no settings of pip
    [ -x "$work/uv/bin/uv" ] || { fresh uv && "$work/uv/bin/pip" install -q uv; }
    "$work/uv/bin/uv" "$@"
}

add() { # add NAME ARGUMENT...: install by uv, which is faster than pip
    uv pip install -q --python "$work/$1/bin/python" "${@:2}"
}
