"""``python -m sandgate.recorder``: the process. Its configuration comes on standard input."""

from __future__ import annotations

import logging
import sys

from sandgate.recorder.process import RecorderConfig, run


def main() -> None:
    """Read the configuration, record until told to stop."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s", force=True)
    try:
        run(RecorderConfig.from_json(sys.stdin.read()))
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"recorder: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
