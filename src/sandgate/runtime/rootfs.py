"""The root file system of a sandbox, assembled inside its own mount namespace.

Everything is mounted by the machine's root before the user namespace is joined: the mount
namespace belongs to the machine, so nobody in the sandbox can mount, unmount or remount.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from sandgate.runtime import linux

_DEVICES = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
_DEVICE_LINKS = (
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)
_MASKED_DIRECTORIES = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/pressure",
    "/proc/scsi",
    "/sys/block",
    "/sys/bus",
    "/sys/class/bdi",
    "/sys/class/block",
    "/sys/class/dmi",
    "/sys/dev",
    "/sys/devices/pci0000:00",
    "/sys/devices/virtual/bdi",
    "/sys/devices/virtual/block",
    "/sys/devices/virtual/dmi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs",
    "/sys/kernel",
    "/sys/module",
    "/sys/power",
)
_MASKED_FILES = (
    "/proc/cmdline",
    "/proc/diskstats",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/key-users",
    "/proc/kmsg",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/modules",
    "/proc/mtrr",
    "/proc/partitions",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
)
"""Hidden: they tell of, or reach, the machine and not the sandbox. Not every kernel has all."""
_READ_ONLY = ("/proc/sys", "/proc/sysrq-trigger")
_HARMLESS = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
_EMPTY = "empty"
"""In the scratch directory: what hidden directories show. One for all, read-only."""
_TTY_GROUP = 5
_SHARED_INODES = 16384
_TERMINALS = 128
"""Pseudo-terminals of one sandbox. The machine has 3072 for all of them together."""


@dataclass(frozen=True, slots=True)
class RootFs:
    """What a root file system is made of. Mounts are detached, given by descriptor."""

    layers: tuple[int, ...]
    """Read-only layers, idmapped, topmost first."""
    disk: int
    """The sandbox's own disk, idmapped, with its directories `upper` and `work`."""
    id_base: int
    """The machine's id of the sandbox's root."""
    shared_mb: int
    """Size of /dev/shm, MiB. What is in it counts as the sandbox's memory, whoever wrote it."""


def prepare_scratch(directory: str) -> None:
    """Make the mount points that :func:`enter` uses, on a small tmpfs. Once for each launcher."""
    linux.mount("tmpfs", directory, "tmpfs", _HARMLESS, "mode=0700,size=1m")
    os.mkdir(f"{directory}/disk")
    os.mkdir(f"{directory}/root")
    os.mkdir(f"{directory}/{_EMPTY}")
    options = "size=0,nr_inodes=2"
    linux.mount("tmpfs", f"{directory}/{_EMPTY}", "tmpfs", _HARMLESS | linux.MS_RDONLY, options)
    for index in range(MAX_LAYERS):
        os.mkdir(f"{directory}/layer{index}")


MAX_LAYERS = 16


def enter(root: RootFs, scratch: str) -> None:
    """Mount everything and make it the root of this (new, private) mount namespace."""
    os.umask(0)
    os.chdir(scratch)  # relative from here: the sandbox can read the mount options
    lower = []
    for index, layer in enumerate(root.layers):
        lower.append(f"layer{index}")
        linux.attach_mount(layer, lower[-1])
    linux.attach_mount(root.disk, "disk")
    target = "root"
    # volatile: nothing on the disk needs to survive the machine, so sync calls cost nothing.
    options = f"lowerdir={':'.join(lower)},upperdir=disk/upper,workdir=disk/work,volatile"
    linux.mount("overlay", target, "overlay", linux.MS_NODEV, options)
    linux.mount("proc", f"{target}/proc", "proc", _HARMLESS)
    linux.mount("sysfs", f"{target}/sys", "sysfs", _HARMLESS | linux.MS_RDONLY)
    _make_devices(f"{target}/dev", root)
    _mask(target)
    os.chdir(target)
    linux.pivot_root(".", ".")
    linux.unmount(".", linux.MNT_DETACH)
    os.chdir("/")
    os.umask(0o022)


def _make_devices(dev: str, root: RootFs) -> None:
    base = root.id_base
    owner = f"uid={base},gid={base}"
    linux.mount("tmpfs", dev, "tmpfs", linux.MS_NOSUID, f"mode=755,size=64k,nr_inodes=64,{owner}")
    for name, major, minor in _DEVICES:
        os.mknod(f"{dev}/{name}", 0o020666, os.makedev(major, minor))
        os.chown(f"{dev}/{name}", base, base)
    for name, to in _DEVICE_LINKS:
        os.symlink(to, f"{dev}/{name}")
        os.lchown(f"{dev}/{name}", base, base)
    os.mkdir(f"{dev}/pts")
    os.mkdir(f"{dev}/shm")
    terminals = f"newinstance,ptmxmode=0666,mode=0620,gid={base + _TTY_GROUP},max={_TERMINALS}"
    linux.mount("devpts", f"{dev}/pts", "devpts", linux.MS_NOSUID | linux.MS_NOEXEC, terminals)
    shared = f"mode=1777,size={root.shared_mb}m,nr_inodes={_SHARED_INODES},{owner}"
    linux.mount("shm", f"{dev}/shm", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, shared)


def _mask(target: str) -> None:
    null = f"{target}/dev/null"
    hidden = [(_EMPTY, path) for path in _MASKED_DIRECTORIES]
    hidden += [(null, path) for path in _MASKED_FILES]
    for cover, path in hidden:
        try:
            linux.mount(cover, target + path, None, linux.MS_BIND)
        except FileNotFoundError:
            if os.path.lexists(target + path):
                raise  # it is the cover that is not there
    for path in _READ_ONLY:
        full = target + path
        if os.path.exists(full):
            linux.mount(full, full, None, linux.MS_BIND | linux.MS_REC)
            flags = linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | _HARMLESS
            linux.mount(None, full, None, flags)
    _give_boot_id(target)


def _give_boot_id(target: str) -> None:
    """Every start of a sandbox is a boot of its own, whatever the machine's id is."""
    draft, shown = f"{target}/dev/boot_id", f"{target}/proc/sys/kernel/random/boot_id"
    with open("/proc/sys/kernel/random/uuid", encoding="ascii") as fresh:
        text = fresh.read()
    with open(draft, "w", encoding="ascii") as file:
        file.write(text)
    os.chmod(draft, 0o444)
    linux.mount(draft, shown, None, linux.MS_BIND)
    linux.mount(None, shown, None, linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | _HARMLESS)
    os.unlink(draft)
