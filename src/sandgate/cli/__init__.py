"""The `sandgate` command."""

from sandgate.cli.main import main

__all__ = ["main"]
