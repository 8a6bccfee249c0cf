"""Packages that only some uses need, imported when they do."""

import importlib
from typing import Any


def need(module: str, extra: str) -> Any:
    """The imported module.

    **Raises:** `ImportError` naming the extra that brings it, where it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} cannot be imported: it needs the extra: pip install 'dynamics[{extra}]'") from error
