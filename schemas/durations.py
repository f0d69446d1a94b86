"""Durations that a program gives: a ``timedelta``, and no number of which nobody knows whether it means seconds."""

from __future__ import annotations

from datetime import timedelta

from schemas.errors import SettingsError


def seconds(name: str, value: object, *, least: timedelta = timedelta(milliseconds=1)) -> float:
    """The seconds of a duration.

    Args:
        name: what the caller knows it by.
        value: what it was given.
        least: zero means "for ever" to some libraries, and must be asked for by leaving the duration out.

    Raises:
        SettingsError: it is no ``timedelta``, or shorter than ``least``.
    """
    if not isinstance(value, timedelta):
        raise SettingsError(f"{name} is {value!r}; use a timedelta, such as timedelta(seconds=10)")
    if value < least:
        raise SettingsError(f"{name} is {value}; it takes {least.total_seconds():g} s or more")
    return value.total_seconds()
