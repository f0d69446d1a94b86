"""The metadata string beside a committed offset: what an owner knows that the offset alone cannot say.

In:  the state of one partition. Out: at most 4,095 ASCII characters (and back).

The committed offset is the lowest unfinished one. The map says which later ones are finished, how far
its owner may have started (``start_limit``), who the owner is, whether it left in order, and which
records have been unfinished at the death of an owner before. A successor reads offset and map in one
call, so the two never disagree.

Version 3:
``3;<flag>;<fence>;<incarnation>;<transactional id>;<start limit>;<finished>;<suspects>;<losses>;<held>``

- flag: ``c`` for clean (nothing of it was running: after a drain, while one job of another partition ran alone, always in a
  retry topic), else ``-``
- start limit: how far behind the offset; nothing at or past it was started
- finished: ``r`` + base64url of varints: lengths of alternating runs (unfinished, finished, …) from the offset on,
  or ``b`` + base64url of a bitset, least significant bit first, whichever is shorter
- suspects: ``distance:owners``, or ``distance+length:owners`` for all unfinished ones in a stretch, joined by commas. A worker
  that dies under load leaves hundreds: stretches keep them short. ``owners`` is a digit for each owner that was lost while the
  record was unfinished, its place among the losses; then ``*`` if it was running alone, and with which of them (no digit: with
  the owner who writes this), or ``+`` if it has to run alone, but has survived that, and goes on beside others
- losses: ``incarnation@time``, joined by commas: who was lost, and when (milliseconds of broker time, hexadecimal). Who is heard
  of later was frozen or cut off and did not die of a job, so a loss can be taken back
- held: of the unfinished ones before the start limit, counted from 0, those that were not started either: they wait behind their
  key, say. Written as finished ones are; empty if it would be too long, for a successor may suspect more than it must

Version 2 had no held ones, and version 1 had a number of deaths instead of owners, ``a`` instead of ``*``, and no losses.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from schemas.errors import GroupNotInitialised
from schemas.headers import LATEST_MS

VERSION: Final = "3"
_FIELDS: Final = 10
#: The broker's ``offset.metadata.max.bytes`` is 4,096, and librdkafka sends a trailing NUL.
MAX_CHARACTERS: Final = 4095
#: Suspects and held ones are left out beyond three quarters of that.
TAKE_LIMIT: Final = MAX_CHARACTERS * 3 // 4

#: No map of ours spans that far; protects from garbage: a few characters can claim more records than fit into memory.
_WIDEST: Final = 1_000_000

#: Lost owners that a map names, each with one digit, and those that one record can have: two make it run alone.
MAX_LOSSES: Final = 8
MAX_OWNERS: Final = 6
#: Stands for all owners whose names are not kept: nobody will ever hear of them.
UNKNOWN: Final = "unknown"

_NAME = re.compile(r"[A-Za-z0-9._-]*")
_DIGITS = re.compile(r"[0-9a-f]{1,19}")
#: Of one partition, one after another.
_MOST_OWNERS_EVER: Final = 2**53


@dataclass(frozen=True, slots=True)
class Suspect:
    """A record that was unfinished when an owner was lost without a word."""

    #: The incarnations that were lost, the last one last; at most six.
    owners: tuple[str, ...] = ()
    #: The incarnation with which it was the only one running: if that one dies, this is the record that kills.
    alone: str = ""
    #: It has to run alone, but has survived that for long enough, and goes on beside others: it may die with its owner as they do.
    joined: bool = False

    @property
    def deaths(self) -> int:
        """How many owners it may have killed."""
        return len(self.owners)


@dataclass(frozen=True, slots=True)
class OffsetMap:
    """What is committed for one partition: an offset and, as metadata, everything else."""

    #: The lowest unfinished offset.
    offset: int
    #: Finished offsets above it.
    finished: frozenset[int] = frozenset()
    #: Nothing at or past this offset was started.
    start_limit: int = 0
    #: Unfinished ones before it that were not started either.
    held: frozenset[int] = frozenset()
    #: Nothing of it was running: its owner has left in order, or ran one job of another partition beside nothing else; or its
    #: records are none to be run.
    clean: bool = True
    #: Rises by one with every owner.
    fence: int = 0
    incarnation: str = ""
    transactional_id: str = ""
    suspects: Mapping[int, Suspect] = field(default_factory=dict)
    #: Owners that were lost without a word, all that suspects speak of, and when their successor noticed, in milliseconds of
    #: broker time.
    losses: Mapping[str, int] = field(default_factory=dict)

    def is_finished(self, offset: int) -> bool:
        """Whether the record at ``offset`` needs no work any more."""
        return offset < self.offset or offset in self.finished

    @property
    def alone(self) -> int | None:
        """What ran beside nothing else with the owner itself, or None."""
        return next(
            (offset for offset, suspect in self.suspects.items() if suspect.alone == self.incarnation != ""),
            None,
        )

    def metadata(self) -> str:
        """The string to commit with ``offset``. Its length is the caller's to check."""
        places = {incarnation: str(place) for place, incarnation in enumerate(self.losses)}
        return ";".join(
            (
                VERSION,
                "c" if self.clean else "-",
                str(self.fence),
                self.incarnation,
                self.transactional_id,
                str(max(self.start_limit - self.offset, 0)),
                _encode_finished(self.offset, self.finished),
                _encode_suspects(self.offset, self.finished, self.suspects, {**places, self.incarnation: ""}),
                ",".join(f"{incarnation}@{at:x}" for incarnation, at in self.losses.items()),
                _encode_held(self),
            )
        )


def parse(offset: int, metadata: str | None, *, where: str = "") -> OffsetMap:
    """Offset and metadata as read from Kafka.

    Raises:
        GroupNotInitialised: no offset, no map, or one of a version that this program does not know.
            Going on without it would run finished jobs again, so a worker refuses.
    """
    if offset < 0:
        raise GroupNotInitialised(
            f"no committed offset for {where}: it expired, or the group was never set up; "
            "see `rustfs-workers topics check`"
        )
    parts = (metadata or "").split(";")
    try:
        if parts[0] == "1":
            parts = _of_version_1(parts)
        if parts[0] == "2":
            parts = [VERSION, *parts[1:], ""]
        if parts[0] != VERSION or len(parts) != _FIELDS:
            raise ValueError(f"it begins with {parts[0]!r:.20}")
        _, flag, fence, incarnation, transactional_id, limit, finished, suspects, lost, held = parts
        if flag not in ("c", "-"):
            raise ValueError(f"flag {flag!r:.20}")
        done = _decode_finished(offset, finished)
        losses = {
            _name(name): _number(at, LATEST_MS, 16)
            for name, at in (loss.split("@") for loss in filter(None, lost.split(",")))
        }
        suspected = _decode_suspects(offset, done, suspects, tuple(losses), incarnation)
        if flag == "c" and any(suspect.alone == incarnation != "" for suspect in suspected.values()):
            raise ValueError("nothing of it was running, and one ran alone")
        if flag == "-" and not incarnation:
            raise ValueError("its owner has no name")
        start_limit = offset + _number(limit, _WIDEST)
        return OffsetMap(
            offset=offset,
            finished=done,
            start_limit=start_limit,
            held=_decode_held(held, offset, start_limit, done),
            clean=flag == "c",
            fence=_number(fence, _MOST_OWNERS_EVER),
            incarnation=_name(incarnation),
            transactional_id=_name(transactional_id),
            suspects=suspected,
            losses=losses,
        )
    except (ValueError, IndexError) as error:
        raise GroupNotInitialised(
            f"the offset of {where} is committed without a map of version {VERSION} ({error}); "
            "somebody else commits for this group, or a newer release wrote it"
        ) from error


def runs(offset: int, finished: Iterable[int]) -> list[int]:
    """Alternating run lengths from ``offset`` on: unfinished, finished, unfinished, …, ending with a finished run."""
    lengths: list[int] = []
    position = offset
    count = 0
    for current in sorted(finished):
        if current == position and count:
            count += 1
        else:
            if count:
                lengths.append(count)
            lengths.append(current - position)
            count = 1
        position = current + 1
    if count:
        lengths.append(count)
    return lengths


def _encode_finished(offset: int, finished: frozenset[int]) -> str:
    if not finished:
        return ""
    varints = bytearray()
    for length in runs(offset, finished):
        while length > 0x7F:  # noqa: PLR2004 - seven bits a byte
            varints.append(length & 0x7F | 0x80)
            length >>= 7  # noqa: PLW2901
        varints.append(length)
    span = max(finished) - offset
    if span // 8 + 1 >= len(varints):
        return "r" + base64.urlsafe_b64encode(varints).decode()
    bits = bytearray(span // 8 + 1)
    for current in finished:
        distance = current - offset
        bits[distance >> 3] |= 1 << (distance & 7)
    return "b" + base64.urlsafe_b64encode(bits).decode()


def _decode_finished(offset: int, text: str) -> frozenset[int]:
    if not text:
        return frozenset()
    kind, data = text[0], base64.urlsafe_b64decode(text[1:])
    if kind == "b":
        return frozenset(
            offset + 8 * index + bit for index, byte in enumerate(data) for bit in range(8) if byte >> bit & 1
        )
    if kind != "r":
        raise ValueError(f"finished part {kind!r}")
    finished: set[int] = set()
    position, done = offset, False
    length = shift = 0
    for byte in data:
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte & 0x80:
            continue
        if position - offset + length > _WIDEST:
            raise ValueError(f"runs of more than {_WIDEST:,} in all")
        if done:
            finished.update(range(position, position + length))
        position += length
        done = not done
        length = shift = 0
    return frozenset(finished)


def named_losses(suspects: Mapping[int, Suspect], losses: Mapping[str, int]) -> dict[str, str]:
    """The lost owners that suspects speak of, each with its name in the map: the oldest of too many are ``UNKNOWN`` from now on."""
    spoken = {name for suspect in set(suspects.values()) for name in (*suspect.owners, suspect.alone)}
    names = sorted(spoken & losses.keys(), key=lambda name: (losses[name], name))
    kept = names if len(names) <= MAX_LOSSES else names[1 - MAX_LOSSES :]
    return {name: name if name in kept else UNKNOWN for name in names}


def _encode_held(given: OffsetMap) -> str:
    if not given.held:
        return ""
    unfinished = (o for o in range(given.offset, given.start_limit) if o not in given.finished)
    return _encode_finished(0, frozenset(n for n, o in enumerate(unfinished) if o in given.held))


def _decode_held(text: str, offset: int, start_limit: int, finished: frozenset[int]) -> frozenset[int]:
    places = _decode_finished(0, text)
    if not places:
        return places
    unfinished = [o for o in range(offset, start_limit) if o not in finished]
    return frozenset(unfinished[place] for place in places)


def _encode_suspects(
    offset: int, finished: frozenset[int], suspects: Mapping[int, Suspect], places: Mapping[str, str]
) -> str:
    stretches: list[tuple[int, int, Suspect]] = []
    for current, suspect in sorted(suspects.items()):
        if stretches:
            first, last, before = stretches[-1]
            if suspect == before and finished.issuperset(range(last + 1, current)):
                stretches[-1] = (first, current, suspect)
                continue
        stretches.append((current, current, suspect))
    return ",".join(
        f"{first - offset}{f'+{last - first + 1}' if last > first else ''}:{_encode_owners(suspect, places)}"
        for first, last, suspect in stretches
    )


def _encode_owners(suspect: Suspect, places: Mapping[str, str]) -> str:
    digits = "".join(places[name] for name in suspect.owners)
    return (
        f"{digits}*{places[suspect.alone]}" if suspect.alone else f"{digits}+" if suspect.joined else digits
    )


def _decode_suspects(
    offset: int, finished: frozenset[int], text: str, lost: tuple[str, ...], incarnation: str
) -> dict[int, Suspect]:
    suspects: dict[int, Suspect] = {}
    reached = 0
    for part in filter(None, text.split(",")):
        stretch, code = part.split(":")
        distance, _, length = stretch.partition("+")
        digits, star, last = code.removesuffix("+").partition("*")
        alone = "" if not star else lost[int(last)] if last else incarnation
        owners = tuple(lost[int(digit)] for digit in digits[-MAX_OWNERS:])
        suspect = Suspect(owners, alone, joined=code.endswith("+") and not star)
        first, count = _number(distance, _WIDEST), _number(length or "1", _WIDEST)
        if first < reached or first + count > _WIDEST:
            raise ValueError(f"suspects that overlap, or over a stretch of more than {_WIDEST:,}")
        reached = first + count
        suspects.update((o, suspect) for o in range(offset + first, offset + reached) if o not in finished)
    return suspects


def _name(text: str) -> str:
    """The next owner names this one in its own map: what a name cannot hold would break that."""
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text!r:.30} is no name")
    return text


def _number(text: str, most: int, base: int = 10) -> int:
    """As we write it: ``int`` takes signs, blanks, underscores and the digits of other scripts as well."""
    if not _DIGITS.fullmatch(text) or (number := int(text, base)) > most:
        raise ValueError(f"{text!r:.30} is not a number from 0 to {most}")
    return number


def _of_version_1(parts: list[str]) -> list[str]:
    """The same with an owner that nobody will ever hear of for each death."""
    *before, suspects = parts
    codes = []
    for suspect in filter(None, suspects.split(",")):
        stretch, deaths = suspect.split(":")
        codes.append(
            f"{stretch}:{'0' * min(int(deaths.removesuffix('a')), MAX_OWNERS)}{'*' if deaths.endswith('a') else ''}"
        )
    return ["2", *before[1:], ",".join(codes), f"{UNKNOWN}@0" if codes else ""]


#: What provisioning commits for a new group: nothing finished, nothing started, nobody owns it.
EMPTY_MAP: Final = OffsetMap(0).metadata()
