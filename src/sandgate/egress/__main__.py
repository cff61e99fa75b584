"""``python -m sandgate.egress``: the gateway process. Its configuration comes on standard input."""

from __future__ import annotations

import logging
import sys

from sandgate.egress.gateway import GatewayConfig, run


def main() -> None:
    """Read the configuration, serve until told to stop."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s", force=True)
    try:
        run(GatewayConfig.from_json(sys.stdin.read()))
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"egress gateway: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
