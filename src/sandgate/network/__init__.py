"""The sandboxes' network on the host: links, routes, kernel rules. Linux, root, one thread."""

from sandgate.network.config import HOST_ADDRESS, NetworkConfig
from sandgate.network.firewalls import foreign_forward_drop, foreign_input_drop
from sandgate.network.host import HostNetwork
from sandgate.network.netlink import NetlinkError

__all__ = [
    "HOST_ADDRESS",
    "HostNetwork",
    "NetlinkError",
    "NetworkConfig",
    "foreign_forward_drop",
    "foreign_input_drop",
]
