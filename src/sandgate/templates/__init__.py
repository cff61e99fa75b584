"""Templates: the root file systems that sandboxes start from, defined as data, built as root.

Here is what finds those that are built; building them is :mod:`sandgate.templates.build`.
"""

from sandgate.templates.definition import TemplateError
from sandgate.templates.store import Template, find, load

__all__ = ["Template", "TemplateError", "find", "load"]
