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
