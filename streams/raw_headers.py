"""The headers of a record that was read, whatever their names are made of.

In:  a consumed record. Out: its headers, but for those whose names are not UTF-8: none of ours is.
"""

from __future__ import annotations

import gc
import operator
from typing import Final, cast

from confluent_kafka import Message

from schemas.headers import RawHeaders

# Called like this, an exception that the library leaves behind beside its result is raised here and not later.
_headers: Final = operator.methodcaller("headers")
_NAME_AND_VALUE: Final = 2


def raw_headers(record: Message) -> RawHeaders | None:
    """Names and values. Call it once for each record.

    The library makes text of names, and raises where one is not UTF-8: any producer could stop every worker.
    """
    try:
        return cast("RawHeaders | None", _headers(record))
    except (SystemError, UnicodeDecodeError):
        # Asked again it has them all, with nothing at all where it has no name; Python may count what such a
        # pair holds, but must not touch it.
        pairs = _headers(record)
        return [pair for pair in pairs if len(gc.get_referents(pair)) == _NAME_AND_VALUE]
