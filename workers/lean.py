"""structlog without rich, for processes of our own.

rich would draw tracebacks in colours, which nothing here asks for, and takes longer to import than all the rest that a handler's
process needs: half of the processor time of its start. A program that uses this project as a library is left as it is.
"""

from __future__ import annotations

import sys
from typing import Any


def import_structlog() -> None:
    """Import it as if rich were not installed; whoever imports rich afterwards gets it. Nothing, if either is loaded already."""
    if "structlog" in sys.modules or "rich" in sys.modules:
        return
    modules: dict[str, Any] = sys.modules
    modules["rich"] = None  # the import system's own way to say that there is none
    try:
        import structlog  # noqa: F401 - that it is loaded is all
    finally:
        del modules["rich"]
