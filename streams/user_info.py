"""User and password in a URL, for whoever masks or refuses them. Apart from the settings: a handler's process loads no pydantic for it."""

from __future__ import annotations

import re
from typing import Final

#: In a URL that stands alone, or in each one of several. "/" in a password that was not written as %2F is of it.
USER_INFO: Final = re.compile(r"(?<=://)(?:[^/?#:]*:(?:(?!://).)*|[^/?#]*)@")
