"""Durations that a program gives: a ``timedelta``, and no number of which nobody knows whether it means seconds."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from schemas.errors import SettingsError

#: Longer ones are slips, and some libraries count milliseconds in 32 bits, or nanoseconds in 64.
LONGEST: Final = timedelta(days=3650)


def seconds(
    name: str, value: object, *, least: timedelta = timedelta(milliseconds=1), most: timedelta = LONGEST
) -> float:
    """The seconds of a duration.

    Args:
        name: what the caller knows it by.
        value: what it was given.
        least: zero means "for ever" to some libraries, and must be asked for by leaving the duration out.
        most: ten years if nothing else is said.

    Raises:
        SettingsError: it is no ``timedelta``, shorter than ``least`` or longer than ``most``.
    """
    if not isinstance(value, timedelta):
        raise SettingsError(f"{name} is {value!r}; use a timedelta, such as timedelta(seconds=10)")
    if value < least:
        raise SettingsError(f"{name} is {value}; it takes {least.total_seconds():g} s or more")
    if value > most:
        raise SettingsError(f"{name} is {value}; it takes {most.days:,} days at most")
    return value.total_seconds()
