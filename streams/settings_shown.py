"""A setting's value as people may see it: in ``config show``, in logs. Nothing secret.

In:  a value. Out: its text.
"""

from __future__ import annotations

import re
from typing import Any, Final

from pydantic import BaseModel, SecretStr

_MASK: Final = "******"
#: Any but those that are known to be none: nobody can name all that a URL may hide (``sig``, ``credential``, ``passwd``).
_PARAMETER: Final = re.compile(r"(?<=[?&])(?!(?:endpoint|region|durable)=)([^=&]*)=[^&]*")
#: User and password in a URL, or in each one of several. "/" in a password that was not written as %2F is of it.
USER_INFO: Final = re.compile(r"(?<=://)(?:[^/?#:]*:(?:(?!://).)*|[^/?#]*)@")


def shown(value: Any) -> str:  # noqa: PLR0911 - one line per kind of value
    """The text, secrets masked."""
    match value:
        case None:
            return ""
        case SecretStr():
            return _MASK
        case BaseModel():
            return shown(value.model_dump())
        case dict():
            return ", ".join(f"{key}={shown(item)}" for key, item in value.items())
        case str() if "://" in value:
            return _without_secrets(value)
        case bool():
            return str(value).lower()
        case float() if value == int(value):
            return str(int(value))
        case _:
            return str(value)


def _without_secrets(url: str) -> str:
    """A URL with what may be a secret masked: the user's part, and all parameters that are not known to be none."""
    return _PARAMETER.sub(rf"\1={_MASK}", USER_INFO.sub(f"{_MASK}@", url))
