"""What a Python kernel shows beside what IPython does: data frames, charts, saved pictures."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from IPython.core.formatters import BaseFormatter
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from traitlets import ObjectName, Unicode

DATA = "e2b/data"
CHART = "e2b/chart"
MAX_CELLS = 1_000_000
"""Of a data frame whose values are shown as data; a larger one has its text and HTML alone."""

_PICTURES = "PIL.Image"


class _ByName(BaseFormatter):
    """Shows objects of one class, which it knows by name and so need not import.

    IPython could look it up as well, but matplotlib's own set-up forgets what it was told.
    """

    _return_type = (dict,)
    wanted: tuple[str, ...] = ()
    """`module.Class`."""

    def show(self, value: Any) -> dict[str, Any] | None:
        raise NotImplementedError

    def __call__(self, value: Any) -> dict[str, Any] | None:
        names = [f"{one.__module__}.{one.__name__}" for one in type(value).__mro__]
        if not any(name in self.wanted for name in names):
            return None
        try:
            return self.show(value)
        except Exception:  # whatever a library says of an object: its other forms remain
            return None


class _Data(_ByName):
    format_type = Unicode(DATA)
    print_method = ObjectName("_repr_e2b_data_")
    wanted = ("pandas.DataFrame", "pandas.core.frame.DataFrame")

    def show(self, value: Any) -> dict[str, Any] | None:
        return columns(value)


class _Chart(_ByName):
    format_type = Unicode(CHART)
    print_method = ObjectName("_repr_e2b_chart_")
    wanted = ("matplotlib.figure.Figure",)

    def show(self, value: Any) -> dict[str, Any] | None:
        return chart_of(value)


def install(shell: InteractiveShell) -> None:
    """Add formatters to a shell. Imports none of the libraries whose objects they show."""
    formatters = shell.display_formatter.formatters
    formatters[DATA] = _Data(parent=shell.display_formatter)
    formatters[CHART] = _Chart(parent=shell.display_formatter)
    sys.meta_path.insert(0, _PictureHook())


def columns(frame: Any) -> dict[str, list[Any]] | None:
    """The values of a pandas.DataFrame by column, as JSON has them."""
    if frame.size > MAX_CELLS:
        return None
    # By pandas' own idea of JSON: times in ISO format, no NaN.
    table = json.loads(frame.to_json(orient="split", date_format="iso", default_handler=str))
    rows = table["data"]
    return {str(name): [row[i] for row in rows] for i, name in enumerate(table["columns"])}


def chart_of(figure: Any) -> dict[str, Any] | None:
    """What is drawn in a matplotlib.figure.Figure, as E2B's package for it tells."""
    from e2b_charts import chart_figure_to_dict

    found: dict[str, Any] = json.loads(json.dumps(chart_figure_to_dict(figure), default=str))
    return found or None


class _PictureHook(importlib.abc.MetaPathFinder):
    """Adds to Pillow, once it is imported: `show` and `save` display the picture."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _PICTURES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            original = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                original(module)
                _show_pictures(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _show_pictures(module: ModuleType) -> None:
    image = module.Image
    save: Callable[..., None] = image.save

    def show(self: Any, title: str | None = None) -> None:
        """Display this picture as a result."""
        display(self)

    def save_and_show(self: Any, fp: Any, format: str | None = None, **params: Any) -> None:
        save(self, fp, format, **params)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        # Libraries use it for their own ends, and pictures are also saved in order to be shown.
        if isinstance(fp, (str, os.PathLike)) and caller == "__main__":
            display(self)

    save_and_show.__doc__ = save.__doc__
    image.show = show
    image.save = save_and_show
