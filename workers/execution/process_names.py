"""Under which names another process finds the handlers that this one has registered.

In:  a handler. Out: names that can be imported, or a ``JobTypeError`` that says what to change.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any, Final

from schemas.errors import JobTypeError
from workers.worker import Handler

#: Where our own packages are, and how they are called.
_ROOT: Final = Path(__file__).parents[2]
_PACKAGES: Final = ("schemas", "streams", "workers")


def search_path() -> list[str]:
    """``sys.path`` as it is for another process that starts in another directory.

    A directory of the user's that has a package with one of our names stands behind ours: here ours are loaded already.
    """
    path = [
        str(Path(entry).absolute())
        if not entry or Path(entry).exists()
        else entry  # the rest are hooks' names
        for entry in sys.path
    ]
    if str(_ROOT) not in path:
        return path
    place = path.index(str(_ROOT))
    before, others = path[:place], [entry for entry in path[:place] if _has_a_name_of_ours(Path(entry))]
    return [*(entry for entry in before if entry not in others), path[place], *others, *path[place + 1 :]]


def _has_a_name_of_ours(directory: Path) -> bool:
    return any((directory / name).is_dir() or (directory / f"{name}.py").exists() for name in _PACKAGES)


def announce(handler: Handler) -> dict[str, Any]:
    """The names under which a child imports the handler, checked here, where the mistake was made.

    Raises:
        JobTypeError: it cannot be imported.
    """
    factory: Any = handler.factory
    arguments: list[Any] = [[], {}]
    if isinstance(factory, functools.partial):
        arguments = _as_sent(factory)
        factory = factory.func
    return {
        "type": handler.job_type.name,
        "schema": handler.job_type.wire.fingerprint.hex(),
        "job": _name(handler.job_type.cls),
        "worker": None if factory is None else _name(factory),
        "arguments": arguments,
    }


def _as_sent(factory: functools.partial[Any]) -> list[Any]:
    """The arguments, if they come out of JSON as they are: no other form is sent to another process."""
    given = [list(factory.args), factory.keywords]
    try:
        if json.loads(json.dumps(given)) == given:
            return given
    except (TypeError, ValueError):
        pass  # no value is named: it may be a secret
    raise JobTypeError(
        f"{_called(factory.func)} runs in a process, and is to be made there with arguments that JSON does not hold as they "
        "are: use text, numbers, lists and dictionaries of text"
    )


def _name(what: Any) -> list[str]:
    """Module and path of a class or a function."""
    module: str = getattr(what, "__module__", None) or "__main__"
    path: str = getattr(what, "__qualname__", "")
    found: Any = None if module == "__main__" else sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    # A reloaded class is another object of the same name, and will do.
    if found is None or not (found is what or (isinstance(found, type) and isinstance(what, type))):
        raise JobTypeError(
            f"{_called(what)} runs in a process, which has to import it under that name: "
            "define it in a module of its own, not in the program's main file and not inside a function"
        )
    return [module, path]


def _called(what: Any) -> str:
    path = getattr(what, "__qualname__", None)
    return f"{what!r:.100}" if path is None else f"{what.__module__}.{path}"
