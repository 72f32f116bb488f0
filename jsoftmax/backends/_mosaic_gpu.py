"""The kernels for a GPU."""

from typing import Any


def refuses(row: Any, name: str) -> str | None:
    return "there is no kernel for a GPU yet"
