"""Who the sandbox is: unknown while it waits to become somebody's, then known for ever."""

from __future__ import annotations

from sandgate.envd.auth import AccessToken
from sandgate.envd.config import EnvdConfig


class Identity:
    """The configuration, which handlers that are built before it ask for when they are called.

    Until :meth:`assume` every use raises RuntimeError, so nobody is served by mistake.
    """

    __slots__ = ("_config", "_token")

    def __init__(self) -> None:
        self._config: EnvdConfig | None = None
        self._token: AccessToken | None = None

    def assume(self, config: EnvdConfig) -> None:
        """Be the sandbox of `config`."""
        self._token = AccessToken(config.access_token)
        self._config = config

    @property
    def config(self) -> EnvdConfig:
        """The configuration."""
        if self._config is None:
            raise RuntimeError("the daemon has no configuration yet")
        return self._config

    @property
    def token(self) -> AccessToken:
        """What a request must show."""
        if self._token is None:
            raise RuntimeError("the daemon has no configuration yet")
        return self._token
