"""`python -m sandgate.templates`: build and list templates without the rest of the node."""

from sandgate.templates.cli import template

template(prog_name="python -m sandgate.templates")
