"""The daemon as it is made before the fork."""

from __future__ import annotations

from sandgate.envd.identity import Identity
from sandgate.envd.inherited import InheritedLoop
from sandgate.envd.metrics import Gauge, Measure
from sandgate.envd.processes import ProcessTable
from sandgate.envd.rpc import Streams
from sandgate.envd.server import Daemon, runner
from sandgate.envd.users import UserDatabase
from sandgate.envd.watch import WatchTable


class Blank:
    """A daemon that is nobody's yet, made before the fork: all sandboxes share its memory."""

    def __init__(self) -> None:
        self.identity = Identity()
        self.processes = ProcessTable()
        self.streams = Streams()
        self.users = UserDatabase()
        self.gauge: Gauge | None = None
        """What tells what the sandbox uses, once there is one."""
        self.inherited: InheritedLoop | None = None
        """Made by :meth:`prepare`."""
        self.server = runner(
            Daemon(
                self.identity,
                self.users,
                self.processes,
                WatchTable(),
                self._measure,
                self.streams,
            )
        )

    def prepare(self) -> None:
        """Do all that can be done before the fork. No event loop may run."""
        self.inherited = InheritedLoop()
        self.inherited.loop.run_until_complete(self.server.setup())

    def _measure(self) -> Measure:
        if self.gauge is None:
            raise OSError("there are no figures yet")
        return self.gauge()
