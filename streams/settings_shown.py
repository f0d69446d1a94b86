"""A setting's value as people may see it: in ``config show``, in logs. Nothing secret.

In:  a value. Out: its text.
"""

from __future__ import annotations

import re
from typing import Any, Final

from pydantic import BaseModel, SecretStr

from streams.user_info import USER_INFO

_MASK: Final = "******"
#: Parameters that are known to be no secret. Nobody can name all that are one (``sig``, ``credential``, ``passwd``).
_HARMLESS: Final = frozenset({"endpoint", "region", "durable"})
#: In a path only ";" begins a parameter; behind "?" or "#" all of them do, so that none hides in another's value.
_IN_PATH: Final = re.compile(r"(;)([^;]*)")
_BEHIND_PATH: Final = re.compile(r"([?&#;])([^?&#;]*)")


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
    url = USER_INFO.sub(f"{_MASK}@", url)
    path = re.split("[?#]", url, maxsplit=1)[0]
    return _IN_PATH.sub(_masked, path) + _BEHIND_PATH.sub(_masked, url[len(path) :])


def _masked(parameter: re.Match[str]) -> str:
    mark, text = parameter.groups()
    name, _, value = text.partition("=")
    if not text or (mark in "?&" and value and name in _HARMLESS):
        return parameter[0]
    # A token may end in "=" itself: what stands before it is a name only if something follows.
    return f"{mark}{name}={_MASK}" if value.strip("=") else f"{mark}{_MASK}"
