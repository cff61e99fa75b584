"""Parts of paths that names of templates and snapshots fill."""

from __future__ import annotations

from starlette.convertors import Convertor, register_url_convertor

TEMPLATE = "template"
"""Name of the convertor, for `{name:template}` in a path."""


class _Template(Convertor[str]):
    """What names a template, be it with slashes: the server decodes `%2F` before it routes.

    Below `aliases/` lies another resource, whose other methods are 405 and not 501.
    """

    regex = "(?!aliases(?:/|$)).+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


# Starlette knows convertors by name only, in one table for the process.
register_url_convertor(TEMPLATE, _Template())
