"""``--import my_package.jobs``: bring a user's job types and workers into this process.

In:  module names from the command line. Out: what can be registered. A message never gets a module imported.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import TypeGuard

import structlog

from schemas.errors import SettingsError
from schemas.job import Job
from workers.worker import Worker

log = structlog.get_logger("rustfs_workers.imports")

Registrable = type[Job] | type[Worker]


def import_modules(names: list[str], *, to_run: bool = False) -> list[Registrable]:
    """Import modules, the working directory included in the search, and return what they define.

    ``to_run``: it is worth a warning if a module has nothing that could be run.

    Raises:
        SettingsError: a module cannot be imported; the message has the reason.
    """
    if not names:
        return []
    try:
        here = str(Path.cwd())
    except FileNotFoundError as error:  # it has been removed under our feet
        raise SettingsError(
            f"--import {names[0]}: the working directory, which is searched first, has been removed; enter one that is there"
        ) from error
    if here not in sys.path:
        sys.path.insert(0, here)
    found: list[Registrable] = []
    for name in names:
        _refuse_paths(name)
        try:
            # What a module says while it is imported is nobody's data.
            with redirect_stdout(sys.stderr):
                module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise SettingsError(f"--import {name}: {error}; is it installed, or in {here}?") from error
        except (Exception, SystemExit) as error:  # an import runs the user's code: it may raise anything
            raise SettingsError(f"--import {name}: {type(error).__name__}: {error}") from error
        of_module = registrable(module)
        if to_run and not of_module:
            log.warning(
                "nothing in this module can be run: no job class with execute(), and no Worker", module=name
            )
        found += of_module
    return found


def _refuse_paths(name: str) -> None:
    """Python's own error for a path speaks of relative imports."""
    if not name or name.startswith(".") or "/" in name or name.endswith(".py"):
        parts = (
            [part for part in Path(name).with_suffix("").parts if part not in (".", "..", "/")]
            if name
            else []
        )
        which = f"{'.'.join(parts)}, the name" if parts else "the name"
        raise SettingsError(f"--import {name}: write {which} of a module, as `import` takes it")


def registrable(module: ModuleType) -> list[Registrable]:
    """Job classes that run themselves and worker classes, as far as the module or what is below it defines them.

    A package may take them from its own modules; what it has from elsewhere is somebody else's to run.
    """
    found: list[Registrable] = []
    handled = set()
    for cls in vars(module).values():
        if not _is_its_own(cls, module):
            continue
        if issubclass(cls, Worker) and cls.worker_type:
            found.append(cls)
            handled.add(cls.worker_type)
    for cls in vars(module).values():
        if (
            _is_its_own(cls, module)
            and issubclass(cls, Job)
            and cls.job_type
            and cls.job_type not in handled
            and cls.runs_itself()
        ):
            found.append(cls)
    return found


def _is_its_own(cls: object, module: ModuleType) -> TypeGuard[type]:
    return inspect.isclass(cls) and f"{cls.__module__}.".startswith(f"{module.__name__}.")
