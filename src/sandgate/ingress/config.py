"""HAProxy's configuration for a node: rendered from a value, written before each start.

Written for HAProxy 2.4 (Ubuntu 22.04) and later. It runs in the foreground, without a master
(:func:`command`), and keeps no state: its route map starts empty, and requests for sandboxes wait
until :class:`sandgate.ingress.client.IngressClient` has filled it again.
"""

from __future__ import annotations

from importlib import resources

from sandgate.ingress.layout import IngressConfig
from sandgate.ingress.pages import ANSWERS, ERRORS
from sandgate.ingress.proxies import sections
from sandgate.ingress.routes import ASLEEP, FILLED

__all__ = ("IngressConfig", "command", "maxconn_for", "render_config", "write_files")

_RESERVED_FDS = 200
_FDS_PER_CLIENT = 6


def maxconn_for(fd_limit: int) -> int:
    """Client connections, and as many requests into sandboxes, for a limit of `fd_limit` files.

    A client connection needs three file descriptors and a request three more; one HTTP/2
    connection carries many requests.
    """
    return max(16, min((fd_limit - _RESERVED_FDS) // _FDS_PER_CLIENT, 20_000))


def command(config: IngressConfig, haproxy: str = "haproxy") -> list[str]:
    """The command that runs HAProxy in the foreground as one process."""
    return [haproxy, "-db", "-f", str(config.config_file)]


def write_files(config: IngressConfig) -> None:
    """Write all that HAProxy reads into `config.directory` (made if need be). None of it is secret.

    The directory may be passed through by everyone, since HAProxy's user connects to sockets in it.
    """
    config.directory.mkdir(parents=True, exist_ok=True)
    config.directory.chmod(0o711)
    config.routes_map.write_text("")
    script = resources.files("sandgate.ingress").joinpath("gate.lua").read_text(encoding="utf-8")
    # No value has a character that means anything within a Lua string.
    head = [
        f'ROUTES_MAP, FILLED, ASLEEP = "{config.routes_map}", "{FILLED}", "{ASLEEP}"',
        "REFUSALS = {}",
    ]
    head += [answer.lua() for answer in ANSWERS]
    config.script.write_text("\n".join([*head, script]))
    for answer in ANSWERS:
        answer.file(config.directory, html=False).write_text(answer.json())
        answer.file(config.directory, html=True).write_text(answer.html())
    for error in ERRORS:
        # Bytes: the line ends are part of the protocol.
        error.file(config.directory).write_bytes(error.answer().encode())
    config.config_file.write_text(render_config(config))


def render_config(config: IngressConfig) -> str:
    """The configuration file. Pure: the same value gives the same text."""
    return "\n".join(sections(config))
