"""The text beside a committed offset: what is read is what was written, it is short, and nonsense is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import GroupNotInitialised
from schemas.offsetmap import EMPTY_MAP, MAX_CHARACTERS, OffsetMap, Suspect, check_name, parse, runs

pytestmark = pytest.mark.worker_coordination

BASE = 1_000_000


@st.composite
def maps(draw: st.DrawFn) -> OffsetMap:
    distances = st.one_of(st.integers(0, 40), st.integers(0, 14_000))
    finished = {BASE + 1 + distance for distance in draw(st.sets(distances, max_size=60))}
    for first in draw(st.lists(distances, max_size=3)):
        finished |= set(range(BASE + first + 1, BASE + first + draw(st.integers(1, 300))))
    suspects: dict[int, Suspect] = {}
    for first in draw(st.lists(distances, max_size=3)):
        suspect = Suspect(draw(st.integers(1, 12)), alone=draw(st.booleans()))
        suspects |= dict.fromkeys(range(BASE + first, BASE + first + draw(st.integers(1, 300))), suspect)
    return OffsetMap(
        offset=BASE,
        finished=frozenset(finished),
        start_limit=BASE + draw(distances),
        clean=draw(st.booleans()),
        fence=draw(st.integers(0, 10**9)),
        incarnation="a1b2c3",
        transactional_id="rustfs.worker.w-1.0",
        suspects={offset: suspect for offset, suspect in suspects.items() if offset not in finished},
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
    suspects = {BASE + distance: Suspect(1) for distance in range(0, 4_000, 2)}
    written = OffsetMap(BASE, finished, BASE, suspects=suspects)
    assert written.metadata().endswith(";0+3999:1")
    assert parse(BASE, written.metadata()) == written


def test_an_unfinished_record_that_is_no_suspect_is_not_made_one() -> None:
    written = OffsetMap(BASE, start_limit=BASE, suspects={BASE: Suspect(1), BASE + 2: Suspect(1)})
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


@pytest.mark.parametrize(
    ("offset", "text"),
    [
        (-1001, EMPTY_MAP),
        (0, None),
        (0, ""),
        (0, "some other program's metadata"),
        (0, "2;c;0;;;0;;"),
        (0, "1;x;0;;;0;;"),
        (0, "1;c;0;;;0;"),
        (0, "1;c;no;;;0;;"),
        (0, "1;c;0;;;9999999999;;"),
        (0, "1;c;0;;;0;q;"),
        (0, "1;c;0;;;0;r_____w8=;"),
        (0, "1;c;0;;;0;;0+9999999999:1"),
        (0, "1;c;0;;;0;;5"),
    ],
)
def test_a_worker_does_not_go_on_without_a_map_that_it_understands(offset: int, text: str | None) -> None:
    with pytest.raises(GroupNotInitialised):
        parse(offset, text, where="t/0")


@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_any_text_is_a_map_or_refused(tail: str) -> None:
    try:
        parse(0, "1;-;1;a;b;" + tail)
    except GroupNotInitialised:
        return


def test_names_that_would_break_the_text_are_refused() -> None:
    assert check_name("worker-1.example_a", "worker_id") == "worker-1.example_a"
    for name in ("a;b", "a b", "ä", "x" * 250):
        with pytest.raises(ValueError, match="worker_id"):
            check_name(name, "worker_id")
