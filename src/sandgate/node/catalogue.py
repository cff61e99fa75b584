"""The templates that sandboxes can be made of."""

from __future__ import annotations

import logging
from pathlib import Path

from sandgate.node.errors import TemplateNotFound
from sandgate.templates import TemplateError, find, load

_log = logging.getLogger(__name__)


class TemplateCatalogue:
    """Knows the names of the built templates; reads them again when asked for one it misses."""

    def __init__(self, data_dir: Path) -> None:
        """Raises :class:`sandgate.templates.TemplateError` if a template is damaged."""
        self._data_dir = data_dir
        self._templates = load(data_dir)

    def resolve(self, reference: str) -> str:
        """The template's own name for a name or an alias. Raises :class:`TemplateNotFound`."""
        found = find(self._templates, reference)
        if found is None:
            try:
                self._templates = load(self._data_dir)
            except TemplateError as error:
                _log.error("templates cannot be read again: %s", error)
            found = find(self._templates, reference)
        if found is None:
            known = ", ".join(sorted(self._templates)) or "none"
            raise TemplateNotFound(
                f"template '{reference}' not found; templates of this node: {known}"
            )
        return found.name
