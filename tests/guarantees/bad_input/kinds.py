"""All kinds of records that may stand on a job or retry topic, and how often. A function's name is the label in an audit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from tests.guarantees.bad_input.bad_headers import (
    bad_header_of_garbage,
    bad_history,
    bad_number,
    bad_origin,
    bad_text,
    damaged_headers,
    extreme_headers,
    far_away,
    far_away_and_unreadable,
    headers_without_values,
    huge_headers,
    huge_headers_of_garbage,
    many_headers,
    most_deliveries,
    the_last_of_two_headers_is_bad,
)
from tests.guarantees.bad_input.bad_values import (
    anothers_fingerprint,
    damaged_value,
    empty_value,
    garbage,
    impossible_envelope,
    large_garbage,
    more_behind_it,
    no_key,
    no_value,
    nobodys_type,
    not_a_job,
    of_another_priority,
    possible_envelope,
    strange_key,
    strange_timestamp,
    strange_timestamp_of_garbage,
    too_large_to_keep,
    truncated,
    unknown_fingerprint,
    unknown_number,
    written_twice,
    wrong_partition,
    wrong_type,
)
from tests.guarantees.bad_input.forge import Bad, Forge

Kind = Callable[[Forge], Bad]

#: What may stand on a job or retry topic, and how often.
KINDS: Final[dict[Kind, int]] = {
    no_value: 30,
    empty_value: 10,
    garbage: 90,
    large_garbage: 2,
    truncated: 100,
    more_behind_it: 30,
    damaged_value: 200,
    unknown_fingerprint: 20,
    unknown_number: 20,
    anothers_fingerprint: 20,
    wrong_type: 50,
    impossible_envelope: 40,
    possible_envelope: 20,
    not_a_job: 20,
    nobodys_type: 10,
    of_another_priority: 10,
    written_twice: 20,
    no_key: 10,
    strange_key: 20,
    wrong_partition: 20,
    strange_timestamp: 2,
    strange_timestamp_of_garbage: 2,
    bad_number: 100,
    bad_history: 30,
    bad_text: 20,
    bad_origin: 20,
    the_last_of_two_headers_is_bad: 10,
    bad_header_of_garbage: 20,
    extreme_headers: 10,
    most_deliveries: 5,
    headers_without_values: 10,
    many_headers: 5,
    huge_headers: 2,
    huge_headers_of_garbage: 2,
    damaged_headers: 60,
    far_away: 10,
    far_away_and_unreadable: 10,
}
#: Megabytes each: a fixed number of them, whatever the seed.
RARE: Final[tuple[Kind, ...]] = (too_large_to_keep,)


def make(forge: Forge, kind: Kind) -> Bad:
    """One record of this kind, with its label and its partition."""
    bad = kind(forge)
    partition = forge.dice.randrange(forge.partitions) if bad.partition < 0 else bad.partition
    return replace(bad, kind=kind.__name__, partition=partition)


def any_kind(forge: Forge) -> Kind:
    """As often as each is wanted."""
    return forge.dice.choices(tuple(KINDS), tuple(KINDS.values()))[0]
