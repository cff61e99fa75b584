"""The daemon inside each sandbox: commands, files and watches for clients with the token.

Speaks E2B's envd protocol: Connect RPC with JSON for `process.Process` and
`filesystem.Filesystem`, plain HTTP for `/files`.
"""

from sandgate.envd.config import ENVD_VERSION, EnvdConfig
from sandgate.envd.daemon import Standby, preload, serve
from sandgate.envd.metrics import Gauge, Measure

__all__ = ("ENVD_VERSION", "EnvdConfig", "Gauge", "Measure", "Standby", "preload", "serve")
