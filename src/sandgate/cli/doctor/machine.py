"""Checks of the kernel and of what it lets us do."""

from __future__ import annotations

import os
import re
import resource
import shutil
import tempfile
from pathlib import Path

from sandgate.cli.doctor.finding import Finding, fail, ok, warn
from sandgate.cli.doctor.trial import trial
from sandgate.runtime import linux
from sandgate.runtime.cgroups import Limits, find_cgroups
from sandgate.runtime.disks import DiskFormat, mount_disk
from sandgate.runtime.userns import create_user_namespace
from sandgate.settings import Settings

MIN_KERNEL = (6, 1)
_UNFAIR_SINCE, _FAIR_SINCE = (6, 12), (7, 1)
_MENDED = {(6, 18): 45}
"""First release that has the mend, of each series that got it later."""
_NEEDED_CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_ADMIN": 21,
    "CAP_MKNOD": 27,
}
"""Numbers from linux/capability.h."""
_FEW_FILES = 16_384
_LOW_DISK = 2 << 30


def kernel(_settings: Settings) -> Finding:
    """New enough for idmapped overlay lowers and for what the network needs?"""
    return judge_kernel(os.uname().release)


def judge_kernel(release: str) -> Finding:
    """The finding for a release as `uname -r` prints it."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    wanted = ".".join(map(str, MIN_KERNEL))
    if match is None:
        return warn(f"cannot tell the version of kernel {release}", f"make sure it is >= {wanted}")
    series, patch = (int(match[1]), int(match[2])), int(match[3] or 0)
    if series < MIN_KERNEL:
        return fail(
            f"kernel {release} is older than {wanted}",
            f"boot a kernel >= {wanted} (Debian 12 and Ubuntu 24.04 have one)",
        )
    if _UNFAIR_SINCE <= series < _FAIR_SINCE and patch < _MENDED.get(series, patch + 1):
        return warn(
            f"kernel {release}: processes that wake each other without end can hold its processors "
            "against all others (docs/security.md)",
            "boot one with Linux commit 101f3498b4bd (6.18.45 and 7.1 have it) if you run hostile "
            "programs beside others",
        )
    return ok(f"kernel {release}")


def privileges(_settings: Settings) -> Finding:
    """Root, with the capabilities that are used?"""
    if os.geteuid() != 0:
        return fail("not root; most checks cannot be made", "run `sudo sandgate doctor`")
    line = re.search(r"^CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.M)
    held = int(line[1], 16) if line else 0
    missing = [name for name, bit in _NEEDED_CAPABILITIES.items() if not held >> bit & 1]
    if missing:
        return fail(
            f"root lacks {', '.join(missing)}",
            "run outside of the container, or give it these capabilities (--privileged)",
        )
    return ok("root with the capabilities that are needed")


def user_namespaces(settings: Settings) -> Finding:
    """Can one be made with our range of ids?"""

    def attempt() -> None:
        os.close(create_user_namespace(settings.uid_base))

    problem = trial(attempt)
    if problem is None:
        return ok(f"a user namespace with ids from {settings.uid_base} could be made")
    return fail(
        f"no user namespace with ids from {settings.uid_base}: {problem}",
        "sysctl -w user.max_user_namespaces=10000 kernel.apparmor_restrict_unprivileged_userns=0",
    )


def cgroups(_settings: Settings) -> Finding:
    """Can a group with all our limits be made?"""
    name = f"doctor{os.getpid()}"

    def attempt(directory: Path) -> None:
        groups = find_cgroups(name, directory)
        groups.setup()
        try:
            groups.create("trial")
            try:
                groups.limit("trial", Limits(cpu_count=1, memory_mb=64, max_pids=16))
            finally:
                groups.remove("trial")
        finally:
            groups.teardown()

    with tempfile.TemporaryDirectory(prefix="sandgate-doctor-") as directory:
        problem = trial(lambda: attempt(Path(directory)), namespaces=linux.CLONE_NEWNS)
    if problem is not None:
        return fail(
            f"control groups cannot limit a sandbox: {problem}",
            "boot with systemd.unified_cgroup_hierarchy=1 (and cgroup_enable=memory where that is "
            "off): the controllers cpu, memory and pids are needed",
        )
    return ok("control groups limit cpu, memory and processes (tried)")


def disks(settings: Settings) -> Finding:
    """Can a sandbox's disk be made and mounted?"""
    if shutil.which("mkfs.ext4", path=_ADMIN_PATH) is None:
        return fail("mkfs.ext4 is not installed", "apt-get install e2fsprogs")
    place = _existing(settings.data_dir)

    def attempt() -> None:
        with tempfile.TemporaryDirectory(dir=place, prefix=".doctor-") as directory:
            image = Path(directory) / "disk"
            DiskFormat.make(64).write(image)
            os.close(mount_disk(image))

    problem = trial(attempt, namespaces=linux.CLONE_NEWNS)
    if problem is None:
        return ok("an ext4 file could be mounted through a loop device")
    return fail(
        f"a sandbox's disk cannot be mounted: {problem}",
        "modprobe loop ext4; in a container, give it /dev/loop-control and the loop devices",
    )


def overlay(settings: Settings) -> Finding:
    """Does overlayfs take an idmapped directory of the data directory's file system below it?"""
    place = _existing(settings.data_dir)

    def attempt() -> None:
        with tempfile.TemporaryDirectory(dir=place, prefix=".doctor-") as name:
            directory = Path(name)
            (directory / "lower").mkdir()
            (directory / "lower" / "file").touch()
            (directory / "top").mkdir()
            linux.mount("tmpfs", f"{directory}/top", "tmpfs")
            for part in ("mapped", "upper", "work", "merged"):
                (directory / "top" / part).mkdir()
            namespace = create_user_namespace(settings.uid_base)
            layer = linux.clone_mount(directory / "lower", namespace)
            top = directory / "top"
            linux.attach_mount(layer, f"{top}/mapped")
            linux.mount(
                "overlay",
                f"{top}/merged",
                "overlay",
                0,
                f"lowerdir={top}/mapped,upperdir={top}/upper,workdir={top}/work",
            )
            owner = (top / "merged" / "file").stat().st_uid
            for mount in ("merged", "mapped"):
                linux.unmount(f"{top}/{mount}", linux.MNT_DETACH)
            linux.unmount(str(top), linux.MNT_DETACH)
            if owner != settings.uid_base:
                raise OSError(f"a file of root is owned by {owner}, not {settings.uid_base}")

    problem = trial(attempt, namespaces=linux.CLONE_NEWNS)
    if problem is None:
        return ok("overlayfs over an idmapped mount works")
    return fail(
        f"no overlay over an idmapped mount in {place}: {problem}",
        "modprobe overlay; put data_dir on ext4, xfs or btrfs, which can be idmapped",
    )


def open_files(_settings: Settings) -> Finding:
    """Is the limit of open files enough for many connections?"""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _FEW_FILES:
        return warn(
            f"at most {hard} open files a process: few connections at once",
            "ulimit -Hn 1048576 (systemd: LimitNOFILE=1048576) before `sandgate up`",
        )
    return ok(f"{hard} open files a process")


def disk_space(settings: Settings) -> Finding:
    """Is there room for sandboxes' disks?"""
    place = _existing(settings.data_dir)
    free = shutil.disk_usage(place).free
    text = f"{free / (1 << 30):.1f} GiB free in {place}"
    remedy = "free some, or set data_dir to a larger file system"
    if free < _LOW_DISK:
        return fail(text, remedy)
    if free < settings.disk_mb << 20:
        return warn(f"{text}: less than one sandbox may use (disk_mb = {settings.disk_mb})", remedy)
    return ok(text)


def _existing(path: Path) -> Path:
    """The nearest directory on the way up that exists."""
    return next(parent for parent in (path, *path.parents) if parent.is_dir())


_ADMIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
