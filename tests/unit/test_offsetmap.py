"""The text beside a committed offset: what is read is what was written, it is short, and nonsense is refused."""

from __future__ import annotations

import base64
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.errors import GroupNotInitialised
from schemas.offsetmap import (
    EMPTY_MAP,
    MAX_CHARACTERS,
    MAX_LOSSES,
    MAX_OWNERS,
    UNKNOWN,
    OffsetMap,
    Suspect,
    parse,
    runs,
)
from workers.offsets import PartitionState

pytestmark = pytest.mark.worker_coordination

BASE = 1_000_000


@st.composite
def maps(draw: st.DrawFn) -> OffsetMap:
    distances = st.one_of(st.integers(0, 40), st.integers(0, 14_000))
    finished = {BASE + 1 + distance for distance in draw(st.sets(distances, max_size=60))}
    for first in draw(st.lists(distances, max_size=3)):
        finished |= set(range(BASE + first + 1, BASE + first + draw(st.integers(1, 300))))
    clean = draw(st.booleans())
    suspects: dict[int, Suspect] = {}
    losses = {f"lost-{n}": draw(st.integers(0, 2**41)) for n in range(draw(st.integers(1, MAX_LOSSES)))}
    owners = st.lists(st.sampled_from(sorted(losses)), min_size=1, max_size=MAX_OWNERS).map(tuple)
    for first in draw(st.lists(distances, max_size=3)):
        alone = draw(st.sampled_from(["", *losses, *([] if clean else ["a1b2c3"])]))
        suspect = Suspect(draw(owners), alone, joined=not alone and draw(st.booleans()))
        suspects |= dict.fromkeys(range(BASE + first, BASE + first + draw(st.integers(1, 300))), suspect)
    start_limit = BASE + draw(distances)
    held = {BASE + distance for distance in draw(st.sets(distances, max_size=60))}
    for first in draw(st.lists(distances, max_size=3)):
        held |= set(range(BASE + first, BASE + first + draw(st.integers(1, 300))))
    return OffsetMap(
        offset=BASE,
        finished=frozenset(finished),
        start_limit=start_limit,
        held=frozenset(offset for offset in held if offset < start_limit and offset not in finished),
        clean=clean,
        fence=draw(st.integers(0, 10**9)),
        incarnation="a1b2c3",
        transactional_id="rustfs.worker.w-1.0",
        suspects={offset: suspect for offset, suspect in suspects.items() if offset not in finished},
        losses=losses,
    )


@given(maps())
def test_what_is_read_is_what_was_written(written: OffsetMap) -> None:
    text = written.metadata()
    assert text.isascii()
    assert parse(BASE, text) == written


@given(st.sets(st.integers(1, 13_999)))
def test_any_pattern_over_the_widest_spread_fits(finished: set[int]) -> None:
    """10,000 offsets and what one round of the poll thread adds to them."""
    scattered = frozenset(range(BASE + 1, BASE + 14_000, 2)) ^ {BASE + distance for distance in finished}
    assert len(OffsetMap(BASE, scattered).metadata()) < MAX_CHARACTERS * 0.6


def test_a_stretch_of_suspects_is_short_however_many_of_it_are_finished() -> None:
    finished = frozenset(range(BASE + 1, BASE + 4_000, 2))
    suspects = {BASE + distance: Suspect(("dead",)) for distance in range(0, 4_000, 2)}
    written = OffsetMap(BASE, finished, BASE, suspects=suspects, losses={"dead": 17})
    assert written.metadata().endswith(";0+3999:0;dead@11;")
    assert parse(BASE, written.metadata()) == written


def test_an_unfinished_record_that_is_no_suspect_is_not_made_one() -> None:
    dead = Suspect(("dead",))
    written = OffsetMap(BASE, start_limit=BASE, suspects={BASE: dead, BASE + 2: dead}, losses={"dead": 1})
    assert parse(BASE, written.metadata()) == written


@given(st.sets(st.integers(0, 300)))
def test_runs_alternate_and_cover_the_finished_ones(finished: set[int]) -> None:
    lengths = runs(0, finished)
    assert all(length > 0 for length in lengths[1:])
    covered: set[int] = set()
    position = 0
    for index, length in enumerate(lengths):
        if index % 2:
            covered |= set(range(position, position + length))
        position += length
    assert covered == finished


def test_a_new_group_has_nothing_finished_and_nobody_to_suspect() -> None:
    empty = parse(7, EMPTY_MAP)
    assert (empty.offset, empty.finished, empty.clean, empty.fence) == (7, frozenset(), True, 0)


def test_a_map_of_version_2_holds_nobody() -> None:
    written = OffsetMap(
        7, frozenset({9}), 12, clean=False, fence=3, incarnation="a", transactional_id="t",
        suspects={8: Suspect(("x",))}, losses={"x": 17},
    )  # fmt: skip
    assert written.metadata() == "3;-;3;a;t;5;bBA==;1:0;x@11;"
    assert parse(7, "2;-;3;a;t;5;bBA==;1:0;x@11") == written


def test_held_ones_are_counted_among_the_unfinished() -> None:
    written = OffsetMap(7, frozenset({9, 10, 12}), 1_007, frozenset(range(13, 1_007)), incarnation="a")
    assert len(written.metadata()) < 40
    assert parse(7, written.metadata()).held == written.held


@pytest.mark.parametrize(
    ("offset", "text"),
    [
        (-1001, EMPTY_MAP),
        (0, None),
        (0, ""),
        (0, "some other program's metadata"),
        (0, "3;c;0;;;0;;;"),
        (0, "2;x;0;;;0;;;"),
        (0, "2;c;0;;;0;;"),
        (0, "2;c;no;;;0;;;"),
        (0, "2;c;0;;;9999999999;;;"),
        (0, "2;c;0;;;0;q;;"),
        (0, "2;c;0;;;0;r_____w8=;;"),
        (0, "2;c;0;;;0;;0+9999999999:0;dead@1"),
        (0, "2;c;0;;;0;;5;dead@1"),
        (0, "2;c;0;;;0;;5:1;dead@1"),
        (0, "2;c;0;;;0;;5:0;dead"),
        (0, "2;-;-1;a;t;0;;;"),
        (0, "2;-;0;a;t;-5;;;"),
        (0, "2;-;\u0663;a;t;0;;;"),
        (0, "2;-;1_0;a;t; 1;;;"),
        (0, "2;-;0;a@b,c;t;0;;;"),
        (0, "2;-;0;a;t t;0;;;"),
        (0, "2;-;0;a;t;0;;0:0;x@-1"),
        (0, f"2;-;0;a;t;0;;0:0;x@{'f' * 300}"),
        (0, f"2;-;{'9' * 4_000};a;t;0;;;"),
        (0, "2;-;0;a;t;0;;-3:0;x@1"),
        (0, "2;-;0;a;t;0;;5+3:0,6:0;x@1"),
        (0, "2;c;0;a;t;0;;5:0*;x@1"),
        (0, "2;-;0;;t;0;;;"),
        (0, "3;-;0;a;t;2;;;;by"),
        (0, "3;-;0;a;t;2;;;;b_w=="),
        (0, "3;-;0;a;t;2;;;;q"),
        (0, "4;c;0;;;0;;;;"),
        (0, "1;c;0;;;0;"),
        (0, "1;c;0;;;0;;5"),
    ],
)
def test_a_worker_does_not_go_on_without_a_map_that_it_understands(offset: int, text: str | None) -> None:
    with pytest.raises(GroupNotInitialised):
        parse(offset, text, where="t/0")


def test_a_map_that_claims_more_records_than_fit_into_memory_costs_nothing() -> None:
    """A hundred characters claimed twenty million; the four thousand that fit claimed seven hundred million."""
    run = b"\x01" + bytes((0xC0, 0x84, 0x3D))  # one unfinished, a million finished
    finished = "r" + base64.urlsafe_b64encode(run * 700).decode()
    stretches = ",".join(f"{number}999999+999999:0" for number in range(1, 200))
    for text in (f"2;-;0;a;t;0;{finished};;", f"2;-;0;a;t;0;;{stretches};x@1"):
        assert len(text) < MAX_CHARACTERS
        tracemalloc.start()
        try:
            with pytest.raises(GroupNotInitialised):
                parse(BASE, text)
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()


@given(maps(), st.data())
@settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow])
def test_a_damaged_map_is_refused_or_can_be_handed_on(written: OffsetMap, data: st.DataObject) -> None:
    """Whatever of it is taken over, the next owner's map can be read by the one after it."""
    text = list(written.metadata())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        piece = data.draw(st.text("0123456789abcr;:,@+*-c_=\u0663\0 é", max_size=6))
        text[at : at + data.draw(st.integers(0, 4))] = piece
    try:
        read = parse(BASE, "".join(text))
    except GroupNotInitialised:
        return
    assert parse(BASE, read.metadata()) == read
    part = PartitionState("t", 0, read, incarnation="heir", transactional_id="t.worker.heir", now_ms=7)
    handed_on = part.plan(())
    assert parse(handed_on.offset, handed_on.metadata()).incarnation == "heir"


@given(st.sampled_from("12"), st.text(st.characters(max_codepoint=127), max_size=60))
def test_any_text_is_a_map_or_refused(version: str, tail: str) -> None:
    try:
        parse(0, version + ";-;1;a;b;" + tail)
    except GroupNotInitialised:
        return


def test_a_map_of_the_version_before_is_read() -> None:
    """Its deaths have no names: nobody can be heard of again."""
    read = parse(7, "1;-;3;abc;t.worker.a;9;rAQI=;0:1,3+2:2a")
    assert (read.finished, read.start_limit, read.fence) == (frozenset({8, 9}), 16, 3)
    assert read.suspects == {
        7: Suspect((UNKNOWN,)),
        10: Suspect((UNKNOWN, UNKNOWN), "abc"),
        11: Suspect((UNKNOWN, UNKNOWN), "abc"),
    }
    assert parse(7, read.metadata()) == read
    assert parse(0, "1;c;0;;;0;;") == parse(0, EMPTY_MAP)
