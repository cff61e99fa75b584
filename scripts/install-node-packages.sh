#!/usr/bin/env bash
# Node packages of every package.json of the examples and tests, where not installed already.
. "$(dirname "$0")/common.sh"

export PATH=$VENV/bin:$PATH
cd "$ROOT"
while IFS= read -r manifest; do
    folder=$(dirname "$manifest")
    stamp=$folder/node_modules/.installed
    lock=$folder/package-lock.json
    if [ -e "$stamp" ] && [ ! "$manifest" -nt "$stamp" ] && [ ! "$lock" -nt "$stamp" ]; then
        continue
    fi
    step "installing Node packages in $folder"
    command=install
    if [ -e "$lock" ]; then command=ci; fi
    quietly "check that this machine reaches its Node package registry" \
        npm --prefix "$folder" "$command" --no-audit --no-fund
    touch "$stamp"
done < <(find examples tests -name node_modules -prune -o -name package.json -print 2>/dev/null)
