"""The assembler: makes what a cell stands in, and has the mould fork the cell.

A process beside the launcher, which meanwhile serves requests. It reads nothing of any sandbox and
nothing from any network. It ends when the launcher does, and what it has half made then is removed
by the next one.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import select
import socket
import subprocess
from typing import NoReturn

from sandgate.network import Links
from sandgate.runtime import disks, linux, userns
from sandgate.runtime.casting import Mould, start_mould
from sandgate.runtime.cgroups import cgroups_from_json
from sandgate.runtime.children import Child, first_message, join, seal_imports
from sandgate.runtime.images import Images
from sandgate.runtime.jobs import Job, Made, Site
from sandgate.runtime.orders import MAX_MESSAGE, Order
from sandgate.runtime.rootfs import RootFs
from sandgate.runtime.slots import group_name

_PAUSE_MS = 20
"""Between pieces of work that nobody waits for, so that it hinders no other."""

_log = logging.getLogger(__name__)


class Assembly:
    """Makes the cells of one node, one after the other."""

    def __init__(self, site: Site, mould: Child) -> None:
        """Raises OSError."""
        self._cgroups = cgroups_from_json(site.cgroups)
        self._images = Images(site.data_dir)
        self._links = Links(site.links, linux.mount_proc)
        self._mould = Mould(mould, site.cgroups, site.scratch, site.seccomp)
        self._formats: dict[int, disks.DiskFormat] = {}
        self._users = userns.UserNamespaces(site.id_base, site.ahead)

    def close(self) -> None:
        """End the mould. The cells live on."""
        self._mould.close()

    def work_ahead(self) -> bool:
        """Do something while there is no job. Returns whether there is more to do."""
        return self._users.work_ahead()

    def make(self, job: Job) -> Made:
        """Fork a cell; it says on its channel when it stands. If that fails, nothing is left."""
        try:
            return self._make(job)
        except (OSError, subprocess.CalledProcessError) as error:
            _log.error("no cell could be made in slot %d: %s", job.slot, error)
            number = error.errno if isinstance(error, OSError) and error.errno else 0
            return Made(job.slot, 0, number, str(error), ())

    def _make(self, job: Job) -> Made:
        slot, name = job.slot, group_name(job.slot)
        self._users.used(slot)
        with contextlib.ExitStack() as made, contextlib.ExitStack() as ours:
            self._cgroups.create(name)
            made.callback(self._cgroups.remove, name)
            self._cgroups.limit(name, job.limits)
            network = self._links.create(slot)
            ours.callback(os.close, network)
            users, owners = self._users.of(slot)
            made.callback(self._images.running(slot).unlink, missing_ok=True)
            disk = self._open_disk(job, owners)
            ours.callback(os.close, disk)
            layers = []
            for layer in job.layers:
                layers.append(linux.clone_mount(layer, users))
                ours.callback(os.close, layers[-1])
            disk_root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=disk)
            made.callback(os.close, disk_root)
            launchers, cells = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            made.callback(launchers.close)
            ours.callback(cells.close)
            root = RootFs(tuple(layers), disk, self._users.base(slot), job.limits.memory_mb // 2)
            order = Order(name, cells.fileno(), network, users, root, job.interpreter)
            pid, pidfd = self._mould.cast(order)
            made.pop_all()
            return Made(slot, pid, 0, "", (pidfd, launchers.detach(), disk_root))

    def _open_disk(self, job: Job, owners: int) -> int:
        path = self._images.running(job.slot)
        path.unlink(missing_ok=True)
        if job.image is None:
            disk_format = self._formats.get(job.disk_mb)
            if disk_format is None:
                disk_format = self._formats[job.disk_mb] = disks.DiskFormat.make(job.disk_mb)
            disk_format.write(path)
        else:
            os.link(job.image, path)
        mount = disks.mount_disk(path)
        try:
            disks.prepare_disk(mount)
            linux.map_owners(mount, owners)
        except OSError:
            os.close(mount)
            raise
        return mount


def _next(launcher: socket.socket, assembly: Assembly) -> bytes:
    """The next job; empty: the launcher is gone. Meanwhile there is time to work ahead."""
    waiting = select.poll()
    waiting.register(launcher, select.POLLIN)
    while not waiting.poll(_PAUSE_MS) and assembly.work_ahead():
        pass
    return launcher.recv(MAX_MESSAGE)


def main() -> NoReturn:
    """Do the launcher's jobs, until it is gone."""
    launcher = join()
    mould = start_mould()
    assembly = Assembly(Site.decode(first_message(launcher, MAX_MESSAGE)), mould)
    seal_imports()
    gc.collect()
    gc.freeze()
    with contextlib.suppress(ConnectionError):
        while message := _next(launcher, assembly):
            made = assembly.make(Job.decode(message))
            made.send(launcher)
            for fd in made.descriptors:
                os.close(fd)
    assembly.close()
    os._exit(0)


if __name__ == "__main__":
    main()
