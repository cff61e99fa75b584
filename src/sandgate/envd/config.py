"""What a launcher tells the daemon of one sandbox."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

ENVD_VERSION = "0.6.13"
"""Version reported as `envdVersion`: every feature gate of the SDKs is open at 0.6.4 and above."""


@dataclass(frozen=True, slots=True)
class EnvdConfig:
    """Identity and defaults of one sandbox. Holds no secret but the sandbox's own token."""

    sandbox_id: str
    template_id: str
    access_token: str | None
    """Value that `X-Access-Token` must have. None: every request is accepted."""
    env: dict[str, str]
    """Variables of every command, below those given with the command itself."""
    default_user: str = "user"
    default_workdir: str | None = None
    """Where an empty path leads. None: the user's home."""

    def to_json(self) -> str:
        """One JSON object with the fields of this class."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> EnvdConfig:
        """Inverse of :meth:`to_json`.

        :raises ValueError: if `text` is not such an object.
        """
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError(f"an envd configuration must be a JSON object, not {fields!r:.80}")

        try:
            return cls(**fields)
        except TypeError as exc:
            raise ValueError(f"not an envd configuration: {exc}") from exc

    def sandbox_env(self) -> dict[str, str]:
        """The variables of :attr:`env` and those that say which sandbox this is."""
        return {
            "E2B_SANDBOX": "true",
            "E2B_SANDBOX_ID": self.sandbox_id,
            "E2B_TEMPLATE_ID": self.template_id,
            **self.env,
        }
