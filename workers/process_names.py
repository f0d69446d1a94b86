"""Under which names another process finds the handlers that this one has registered.

In:  a handler. Out: names that can be imported, or a ``JobTypeError`` that says what to change.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

from schemas.errors import JobTypeError
from workers.worker import Handler


def search_path() -> list[str]:
    """``sys.path`` as it is for another process that starts in another directory."""
    return [
        str(Path(entry).absolute())
        if not entry or Path(entry).exists()
        else entry  # the rest are hooks' names
        for entry in sys.path
    ]


def announce(handler: Handler) -> dict[str, Any]:
    """The names under which a child imports the handler, checked here, where the mistake was made.

    Raises:
        JobTypeError: it cannot be imported, or not be made without arguments.
    """
    worker = None if handler.worker is None else type(handler.worker)
    if worker is not None:
        needed = [
            name
            for name, parameter in inspect.signature(worker).parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        if needed:
            raise JobTypeError(
                f"{worker.__module__}.{worker.__qualname__} runs in a process, which makes it without arguments: "
                f"give {', '.join(needed)} a default, or register a subclass whose __init__ takes none"
            )
    return {
        "type": handler.job_type.name,
        "schema": handler.job_type.wire.fingerprint.hex(),
        "job": _name(handler.job_type.cls),
        "worker": None if worker is None else _name(worker),
    }


def _name(cls: type) -> list[str]:
    found: Any = None if cls.__module__ == "__main__" else sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type):
        raise JobTypeError(
            f"{cls.__module__}.{cls.__qualname__} runs in a process, which has to import it under that name: "
            "define it in a module of its own, not in the program's main file and not inside a function"
        )
    return [cls.__module__, cls.__qualname__]
