# Shared by the scripts of this folder; sourced, not run.
# shellcheck shell=bash
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv

# One line a step, on standard error, so that output stays readable in a log.
step() { printf '==> %s\n' "$*" >&2; }

# fail MESSAGE [REMEDY]
fail() {
    printf 'error: %s\n' "$1" >&2
    if [ $# -gt 1 ]; then printf '  fix: %s\n' "$2" >&2; fi
    exit 1
}

# Run a command silently; if it fails, show what it said, then the remedy.
# quietly REMEDY COMMAND...
quietly() {
    local remedy=$1 log
    shift
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1 </dev/null; then
        tail -n 30 "$log" >&2
        rm -f "$log"
        fail "this command failed: $*" "$remedy"
    fi
    rm -f "$log"
}

# Print the first Python >= 3.11: of $PYTHON if set, else the first that can make virtual
# environments, else the first of all.
find_python() {
    local candidate path first=
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        path=$(command -v "$candidate") || continue
        "$path" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        if "$path" -c 'import ensurepip, venv' 2>/dev/null; then
            printf '%s\n' "$path"
            return
        fi
        first=${first:-$path}
    done
    if [ -n "$first" ]; then
        printf '%s\n' "$first"
        return
    fi
    fail "no Python 3.11 or newer found${PYTHON:+ as PYTHON=$PYTHON}" \
        "install one (on Debian 12: apt-get install python3) or name it: make install PYTHON=/path/to/python3"
}
