"""``python -m sandgate.api``: the control process. Its configuration comes on standard input."""

from __future__ import annotations

import gc


def main() -> None:
    """Read the configuration, give up root, serve until told to stop."""
    # Looking for garbage takes a fifth of the start, and next to all that is made in it stays.
    gc.disable()
    from sandgate.api.startup import run

    run()


if __name__ == "__main__":
    main()
