"""The daemon inside each sandbox: commands, files and watches for clients with the token.

Speaks E2B's envd protocol: Connect RPC with JSON for `process.Process` and
`filesystem.Filesystem`, plain HTTP for `/files`.
"""

from sandgate.envd.blank import Blank
from sandgate.envd.config import ENVD_VERSION, EnvdConfig
from sandgate.envd.daemon import ENDING_SIGNAL, PAUSING_SIGNAL, Standby, preload, serve
from sandgate.envd.metrics import Gauge, Measure

__all__ = (
    "ENDING_SIGNAL",
    "ENVD_VERSION",
    "PAUSING_SIGNAL",
    "Blank",
    "EnvdConfig",
    "Gauge",
    "Measure",
    "Standby",
    "preload",
    "serve",
)
