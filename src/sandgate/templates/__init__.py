"""Templates: the root file systems that sandboxes start from, defined as data, built as root."""

from sandgate.templates.build import build, prune
from sandgate.templates.definition import Definition, TemplateError, load_definitions
from sandgate.templates.node_layer import (
    BUNDLE_INSIDE,
    CA_INSIDE,
    prune_node_layers,
    write_node_layer,
)
from sandgate.templates.progress import ConsoleReporter, Reporter
from sandgate.templates.store import Template, find, load

__all__ = [
    "BUNDLE_INSIDE",
    "CA_INSIDE",
    "ConsoleReporter",
    "Definition",
    "Reporter",
    "Template",
    "TemplateError",
    "build",
    "find",
    "load",
    "load_definitions",
    "prune",
    "prune_node_layers",
    "write_node_layer",
]
