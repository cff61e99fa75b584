"""The official E2B classes, bound to this machine's node.

Per call, options that the caller gives win, then those of the node. `E2B_*` variables do not
count here: who imports these classes means the local node.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from e2b import AsyncSandbox as _AsyncSandbox
from e2b import Sandbox as _Sandbox

from sandgate.cli.environment import MISLEADING, client_environment
from sandgate.cli.trust import OVERRIDING, TRUST_VARIABLES, certificates, given_up
from sandgate.settings import load_settings
from sandgate.supervisor.background import NodeError
from sandgate.supervisor.layout import Layout
from sandgate.supervisor.processes import ProcessId
from sandgate.supervisor.record import NodeRecord, running_node

if TYPE_CHECKING:
    from typing import Unpack

    from e2b.connection_config import ApiParams

__all__ = ["AsyncSandbox", "NodeError", "Sandbox"]


@dataclass(frozen=True, slots=True)
class _Binding:
    """How the node that `supervisor` runs is reached."""

    supervisor: ProcessId
    domain: str
    api_key: str

    def options(self) -> dict[str, object]:
        options: dict[str, object] = {
            "domain": self.domain,
            "api_key": self.api_key,
            # Named too, or the variables E2B_API_URL and E2B_DEBUG would be asked.
            "api_url": f"https://api.{self.domain}",
            "debug": False,
        }
        if "E2B_SANDBOX_URL" in os.environ:
            # The variable would otherwise send the sandboxes' traffic elsewhere.
            options["sandbox_url"] = f"https://sandbox.{self.domain}"
        return options


class _LocalNode:
    """The node of this machine, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._binding: _Binding | None = None

    def options(self) -> dict[str, object]:
        """Connection options for the SDK. Raises NodeError where there is no node to be had."""
        with self._lock:
            if self._binding is None or not self._binding.supervisor.alive():
                self._binding = _bind()
            return self._binding.options()


def _bind() -> _Binding:
    settings = load_settings()
    layout = Layout.of(settings)
    try:
        supervisor, record = running_node(layout)
        if supervisor is None or record is None or record.phase != "ready":
            _start()
            supervisor, record = running_node(layout)
        if supervisor is None or record is None:
            raise NodeError(f"the node in {layout.data_dir} ended just after its start")
        key = layout.read_api_key()
    except PermissionError as error:
        raise NodeError(
            f"{error.filename}: only root may use the node's key. As another user, let root give "
            'you the output of `sandgate env` and use the classes of the package "e2b"'
        ) from None
    _trust(record)
    return _Binding(supervisor, record.domain, key)


def _start() -> None:
    """By the command, so that the node is no child of this process."""
    result = subprocess.run(
        [sys.executable, "-I", "-m", "sandgate", "up"], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise NodeError(result.stderr.strip().removeprefix("Error: "))


def _trust(record: NodeRecord) -> None:
    """Let this process and its children verify the node's certificate and reach it without a proxy.

    The SDK has no option for the authority: its transports read `SSL_CERT_FILE` when the first
    request makes them (seen with e2b 2.2.0, 2.45.1 and 2.63.0). The others are for requests to
    sandbox URLs by `requests`, curl and Node. What the user set is replaced only if the node's
    bundle holds all of it, so that nothing loses trust.
    """
    wanted = client_environment(record, api_key=None, environment=os.environ)
    for name in ("NO_PROXY", "no_proxy"):
        if name in wanted:
            os.environ[name] = wanted[name]
    kept = given_up(wanted, os.environ)
    for name in (*TRUST_VARIABLES, OVERRIDING):
        if name not in wanted or record.ca is None:
            continue
        if name not in kept:
            os.environ[name] = wanted[name]
        elif not certificates(record.ca) <= certificates(Path(present := os.environ[name])):
            warnings.warn(
                f"{name}={present} does not hold the node's authority {record.ca}: connections "
                f"to the node will fail where it counts. Unset it, or add the content of "
                f"{record.ca} to it",
                stacklevel=2,
            )


_NODE = _LocalNode()


def _merge(given: Mapping[str, object]) -> ApiParams:
    chosen = {name: value for name, value in given.items() if value is not None}
    return cast("ApiParams", {**_NODE.options(), **chosen})


class Sandbox(_Sandbox):
    """`e2b.Sandbox` on this machine's node; the node is started at the first call if none runs."""

    @classmethod
    def _resolve_api_params(cls, **opts: Unpack[ApiParams]) -> ApiParams:
        return _merge(opts)


class AsyncSandbox(_AsyncSandbox):
    """`e2b.AsyncSandbox` on this machine's node.

    The first call blocks the event loop for some seconds if the node has to be started; start it
    before with `sandgate up` where that matters.
    """

    @classmethod
    def _resolve_api_params(cls, **opts: Unpack[ApiParams]) -> ApiParams:
        return _merge(opts)


if not hasattr(_Sandbox, "_resolve_api_params"):
    # SDKs of before bound clients (2.2, say) know variables only, and read them at each call. What
    # is there may be another service's: who imports these classes means the local node.
    for _name in MISLEADING:
        os.environ.pop(_name, None)
    for _name, _option in (("E2B_DOMAIN", "domain"), ("E2B_API_KEY", "api_key")):
        os.environ[_name] = str(_NODE.options()[_option])
