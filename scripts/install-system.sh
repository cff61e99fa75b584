#!/usr/bin/env bash
# What Sandgate needs from the machine: Debian packages and system users. Does nothing if all is
# there already.
. "$(dirname "$0")/common.sh"

# One for each component that is not root: they cannot read or trace each other.
SERVICE_USERS=(sandgate sandgate-egress sandgate-recorder sandgate-proxy)
PACKAGES=(
    ca-certificates e2fsprogs haproxy iproute2 libnss-myhostname libseccomp2 mmdebstrap nftables
    openssl util-linux
)
POLICY=/usr/sbin/policy-rc.d

[ "$(id -u)" -eq 0 ] || fail "Sandgate is installed and run by root, and you are $(id -un)" \
    "run it again with sudo: sudo make ${MAKECMDGOALS:-install}"
command -v apt-get >/dev/null || fail "this machine has no apt-get" \
    "use Debian 12 or later, or Ubuntu 22.04 or later"

python=$(find_python)
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    PACKAGES+=("$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')")
fi

missing=()
for package in "${PACKAGES[@]}"; do
    status=$(dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null || true)
    grep -qx installed <<<"$status" || missing+=("$package")
done

# The distribution's HAProxy service is not ours: only its program is wanted. One that the operator
# had installed before is left alone.
undo_policy() { rm -f "$POLICY"; }
if [ ${#missing[@]} -gt 0 ]; then
    step "installing Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
    if [ ! -e "$POLICY" ]; then
        trap undo_policy EXIT
        printf '#!/bin/sh\nexit 101\n' >"$POLICY"
        chmod 0755 "$POLICY"
    fi
    apt=(apt-get -q -y -o DPkg::Lock::Timeout=300)
    quietly "check that this machine reaches its package mirror" "${apt[@]}" update
    quietly "run 'apt-get install ${missing[*]}' by hand and see what it says; on Ubuntu the component 'universe' must be enabled" \
        "${apt[@]}" install --no-install-recommends "${missing[@]}"
    case " ${missing[*]} " in
        *" haproxy "*)
            # Without systemctl there is nothing that would start it, either.
            if command -v systemctl >/dev/null; then
                quietly "run 'systemctl disable haproxy' by hand" systemctl disable haproxy
            fi
            ;;
    esac
fi

for user in "${SERVICE_USERS[@]}"; do
    if ! id -u "$user" >/dev/null 2>&1; then
        step "adding the system user $user"
        quietly "add it by hand: useradd --system $user" \
            useradd --system --user-group --no-create-home --home-dir /nonexistent \
            --shell /usr/sbin/nologin "$user"
    fi
done
