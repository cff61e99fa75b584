"""The unit by which systemd runs a node. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

UNIT = "sandgate.service"

_DROPPED = (
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_DAC_READ_SEARCH",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_NET_BROADCAST",
    "CAP_PERFMON",
    "CAP_SYSLOG",
    "CAP_SYS_BOOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_RAWIO",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
)
"""Capabilities that nothing here uses."""

_TEMPLATE = """\
# Written by `sandgate install`; run that again after an upgrade. `sandgate uninstall` removes it.
[Unit]
Description=Sandgate: sandboxes for untrusted code
Documentation=file:{docs}
After=network-online.target nss-lookup.target
Wants=network-online.target
StartLimitIntervalSec=60
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
# SIGUSR1 ends the node's own processes and keeps the sandboxes, whose processes are left alone, so
# that the next start takes them over: `systemctl restart` is an upgrade in place. `sandgate down`
# ends the sandboxes, too.
KillSignal=SIGUSR1
KillMode=process
SendSIGKILL=no
Restart=on-failure
RestartSec=1
TimeoutStartSec=5min
TimeoutStopSec=3min
Delegate=yes
LimitNOFILE=1048576
LimitNPROC=infinity
TasksMax=infinity
# Sandboxes, which the kernel may end for want of memory, come before the node.
OOMScoreAdjust=-500
OOMPolicy=continue
UMask=0077
StandardInput=null
# Nothing that loads a system call filter or sets no_new_privs: sandboxes would inherit it, and sudo
# in them would not work. They have filters of their own.
CapabilityBoundingSet=~{dropped}
ProtectSystem=full
ProtectHome=read-only
ReadWritePaths={writable}
# Disks of sandboxes are on loop devices; no other device is in reach.
DevicePolicy=closed
DeviceAllow=/dev/loop-control rw
DeviceAllow=block-loop rw
# The components that are not root do not see each other, nor what else runs.
ProtectProc=invisible
PrivateIPC=yes
KeyringMode=private
RemoveIPC=no

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True)
class UnitPlan:
    """What the unit depends on."""

    command: Sequence[str]
    """Absolute."""
    data_dir: Path
    docs: Path


def render_unit(plan: UnitPlan) -> str:
    """The unit's text. Raises ValueError for a path that no unit can hold."""
    program = plan.command[0]
    if set(program) & set("\"'\\"):
        raise ValueError(f"systemd runs no program with quotes in its path ({program}); move it")
    return _TEMPLATE.format(
        # Variables are replaced in arguments only.
        command=" ".join(
            [_quoted(program), *(_quoted(word).replace("$", "$$") for word in plan.command[1:])]
        ),
        writable=_quoted(str(plan.data_dir), always=True),
        docs=_specifiers(quote(str(plan.docs))),
        dropped=" ".join(_DROPPED),
    )


def _quoted(word: str, *, always: bool = False) -> str:
    """One word of a unit file's line (systemd.syntax(7), systemd.service(5))."""
    if "\n" in word or "\r" in word:
        raise ValueError(f"{word!r} has a line break, which no unit file can hold; rename it")
    text = _specifiers(word).replace("\\", "\\\\").replace('"', '\\"')
    plain = not always and text and not set(text) & set(" \t'\"\\;#")
    return text if plain else f'"{text}"'


def _specifiers(text: str) -> str:
    return text.replace("%", "%%")
