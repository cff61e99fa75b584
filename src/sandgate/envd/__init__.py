"""The daemon inside each sandbox: commands, files and watches for clients with the token.

Speaks E2B's envd protocol: Connect RPC with JSON for `process.Process` and
`filesystem.Filesystem`, plain HTTP for `/files`.

Who starts it imports `daemon` and `blank`; here is what others need, who start without all that.
"""

from sandgate.envd.config import ENVD_VERSION, EnvdConfig

__all__ = ("ENVD_VERSION", "EnvdConfig")
