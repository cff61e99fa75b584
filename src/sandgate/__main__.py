"""`python -m sandgate`: the `sandgate` command."""

from sandgate.cli import main

main(prog_name="sandgate")
