"""Records whose headers are wrong, or are read as far as they go."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Final

from schemas import headers as h
from schemas.headers import LATEST_MS, MAX_COUNT
from tests.guarantees.bad_input.bad_values import garbage
from tests.guarantees.bad_input.forge import WIRE_ERRORS, Bad, Fate, Forge, Headers, own_headers

_NOT_UTF8: Final = b"\xff\xfe\xc3\x28"
_NO_NUMBERS: Final = (
    b"-1",
    b"",
    b" 1",
    b"1_0",
    b"+1",
    b"1.5",
    b"0x10",
    b"three",
    "\u0663".encode(),
    _NOT_UTF8,
    b"9" * 19,
    b"9" * 5_000,
    b"null",
    b"\0\0\0\1",
)
_NUMBERS: Final = (
    h.ATTEMPT,
    h.DELIVERY,
    h.NOT_BEFORE,
    h.DELAY,
    h.FIRST_SEEN,
    h.REDRIVES,
    h.UNKNOWN_SINCE,
    h.SNOOZED_SINCE,
)
_NO_HISTORIES: Final = (
    b"",
    b"null",
    b"{}",
    b"[[]]",
    b"[1]",
    b"[" * 50_000,
    b'[[1,"w",1,1,"e"]]',
    b'[[0,"w",1,1,"e","m"]]',
    b'[[1,"w",-1,1,"e","m"]]',
    b'[[1,"w",1e999,1,"e","m"]]',
    b'[["1","w",1,1,"e","m"]]',
    b'[[1,2,1,1,"e","m"]]',
    b"[" + b"9" * 5_000 + b"]",
    _NOT_UTF8,
)
_BAD_TEXTS: Final = (
    (h.TYPE, _NOT_UTF8),
    (h.TYPE, b"t" * 257),
    (h.TYPE, b"t" * 500_000),
    (h.ORIGIN_TOPIC, _NOT_UTF8),
    (h.ORIGIN_TOPIC, b"t" * 257),
    (h.ERROR_TYPE, _NOT_UTF8),
    (h.ERROR_MESSAGE, _NOT_UTF8),
    (h.TRACEPARENT, _NOT_UTF8),
)
_BAD_ORIGINS: Final = (
    (h.ORIGIN_PARTITION, b"-1"),
    (h.ORIGIN_PARTITION, b"2147483648"),
    (h.ORIGIN_OFFSET, b"-1"),
    (h.ORIGIN_OFFSET, b"9223372036854775808"),
    (h.ORIGIN_OFFSET, _NOT_UTF8),
)


def bad_number(forge: Forge) -> Bad:
    name = forge.dice.choice(_NUMBERS)
    values = [
        *_NO_NUMBERS,
        str(MAX_COUNT + 1).encode() if name in (h.ATTEMPT, h.DELIVERY, h.REDRIVES) else b"-5",
    ]
    return _with_bad_header(forge, [(name, forge.dice.choice(values))])


def bad_history(forge: Forge) -> Bad:
    return _with_bad_header(forge, [(h.HISTORY, forge.dice.choice(_NO_HISTORIES))])


def bad_text(forge: Forge) -> Bad:
    return _with_bad_header(forge, [forge.dice.choice(_BAD_TEXTS)])


def bad_origin(forge: Forge) -> Bad:
    return _with_bad_header(forge, [(h.ORIGIN_TOPIC, b"t"), forge.dice.choice(_BAD_ORIGINS)])


def the_last_of_two_headers_is_bad(forge: Forge) -> Bad:
    name = forge.dice.choice(_NUMBERS)
    return _with_bad_header(forge, [(name, b"1"), (name, forge.dice.choice(_NO_NUMBERS))])


def bad_header_of_garbage(forge: Forge) -> Bad:
    letter = garbage(forge)
    headers: Headers = [(forge.dice.choice(_NUMBERS), forge.dice.choice(_NO_NUMBERS))]
    return replace(letter, headers=headers, errors=WIRE_ERRORS)


def extreme_headers(forge: Forge) -> Bad:
    """As far as they may go."""
    most, latest = str(MAX_COUNT).encode(), str(LATEST_MS).encode()
    headers = forge.dice.choice(
        (
            own_headers(attempt=most),
            own_headers(redrives=most),
            own_headers(first_seen=latest),
            own_headers(unknown_since=latest),
            own_headers(snoozed_since=latest),
            own_headers(history=_long_history()),
            own_headers(error_message=b"m" * 300_000, error_type=b"e" * 10_000),
            own_headers(traceparent=b"t" * 100_000),
            own_headers(type=b"\0" * 256),
        )
    )
    key, value = forge.good()
    return Bad("", Fate.RUNS, key, value, headers)


def most_deliveries(forge: Forge) -> Bad:
    """Nothing can follow it: one that is forwarded has a number too many."""
    key, value = forge.good()
    headers = own_headers(type=b"bad_plain", delivery=str(MAX_COUNT).encode())
    errors = frozenset({"BadHeaders"})
    return Bad("", Fate.RUNS, key, value, headers, errors, behind_a_tier=Fate.DEAD)


def headers_without_values(forge: Forge) -> Bad:
    key, value = forge.good()
    return Bad("", Fate.RUNS, key, value, [(name, None) for name in (*_NUMBERS, h.TYPE, h.HISTORY, "x")])


def many_headers(forge: Forge) -> Bad:
    key, value = forge.good()
    headers: Headers = [(f"x-{n}", forge.dice.randbytes(9)) for n in range(forge.dice.randint(100, 400))]
    return Bad("", Fate.RUNS, key, value, headers)


def huge_headers(forge: Forge) -> Bad:
    key, value = forge.good()
    size = forge.dice.choice((10_000, 100_000, 600_000))
    return Bad("", Fate.RUNS, key, value, [("x", b"h" * size), ("n" * 20_000, None)])


def huge_headers_of_garbage(forge: Forge) -> Bad:
    size = forge.dice.choice((10_000, 100_000, 600_000))
    return replace(garbage(forge), headers=[("x", b"h" * size), ("y", _NOT_UTF8), ("", b"no name")])


def damaged_headers(forge: Forge) -> Bad:
    """All of ours, as after two failures, and one of them changed at random."""
    key, value = forge.good()
    headers = own_headers(
        type=b"bad_plain",
        attempt=b"3",
        delivery=b"5",
        not_before=b"1760000000000",
        first_seen=b"1760000000000",
        redrives=b"1",
        snoozed_since=b"1760000000000",
        error_type=b"ValueError",
        error_message="größer".encode(),
        history=b'[[1,"w.0",1760000000000,1760000000001,"ValueError","no"]]',
        traceparent=b"00-a-b-01",
    )
    at = forge.dice.randrange(len(headers))
    headers[at] = (headers[at][0], forge.damaged(headers[at][1] or b""))
    return Bad("", Fate.ENDS, key, value, headers)


def far_away(forge: Forge) -> Bad:
    """Not before the year 9999."""
    key, value = forge.good()
    name = forge.dice.choice((h.NOT_BEFORE, h.DELAY))
    return Bad("", Fate.WAITS, key, value, [(h.TYPE, b"bad_plain"), (name, str(LATEST_MS).encode())])


def far_away_and_unreadable(forge: Forge) -> Bad:
    return replace(garbage(forge), headers=own_headers(not_before=str(LATEST_MS).encode()))


def _with_bad_header(forge: Forge, headers: Headers) -> Bad:
    key, value = forge.good(forge.sample())
    named: Headers = [] if any(name == h.TYPE for name, _ in headers) else own_headers(type=b"bad_plain")
    foreign: Headers = [("x-of-others", _NOT_UTF8)]
    return Bad("", Fate.DEAD, key, value, [*named, *foreign, *headers], frozenset({"BadHeaders"}))


def _long_history() -> bytes:
    row = [1, "w" * 300, 1_760_000_000_000, 1_760_000_000_001, "e" * 300, "m" * 300]
    return json.dumps([row] * 300).encode()
