"""Commands inside a template, on a throw-away overlay so that it stays as it was built."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from sandgate.templates import Template

_ENTER = """
set -eu
root=$1 lower=$2
shift 2
mount -t tmpfs tmpfs "$root"
mkdir "$root/upper" "$root/work" "$root/merged"
mount -t overlay -o "lowerdir=$lower,upperdir=$root/upper,workdir=$root/work" overlay "$root/merged"
cd "$root/merged"
mount -t proc proc proc
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero random urandom; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
hostname sandbox
echo "127.0.1.1 sandbox" >>etc/hosts
path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec chroot . env -i HOME=/root PATH=$path "$@"
"""


def inside(
    template: Template, scratch: Path, *argv: str, above: Sequence[Path] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a program as root in the template, with `above` as further layers, without network."""
    lower = ":".join(str(layer) for layer in (*above, *template.layers))
    return subprocess.run(
        [
            *("unshare", "--mount", "--uts", "--net", "--pid", "--fork", "--kill-child"),
            *("sh", "-c", _ENTER, "sh", str(scratch), lower, *argv),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
