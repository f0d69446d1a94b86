"""A node that hangs has some threads, not all."""

from __future__ import annotations

import pytest

from workers.storage.standstills import Standstills

pytestmark = pytest.mark.job_processing

ALL = frozenset({"n1", "n2", "n3"})
WELL = frozenset({"n1", "n3"})
NOBODY = frozenset[str]()


def hung() -> Standstills:
    """Four copies from n1 to n2 and n3 have stood still, because of n2."""
    standstills = Standstills(60.0)
    for _ in range(4):
        assert standstills.hanging(ALL, 0.0) == NOBODY
        standstills.stood_still(ALL, 0.0)
    return standstills


def test_nodes_that_let_one_copy_after_the_other_stand_still_are_left_alone_together() -> None:
    standstills = hung()
    assert standstills.hanging(ALL, 1.0) == ALL


def test_a_copy_without_one_of_them_goes_ahead_and_acquits_the_others() -> None:
    standstills = hung()
    assert standstills.hanging(WELL, 1.0) == NOBODY
    standstills.went_on(WELL)
    assert standstills.hanging(ALL, 1.0) == ALL, "n2 is among them"
    assert standstills.hanging(frozenset({"n1", "n4"}), 1.0) == NOBODY


def test_one_that_stands_still_as_well_tells_more() -> None:
    standstills = hung()
    standstills.went_on(WELL)
    assert standstills.hanging(frozenset({"n2", "n4"}), 1.0) == NOBODY
    standstills.stood_still(frozenset({"n2", "n4"}), 1.0)
    for nodes in ({"n2"}, {"n1", "n2"}, {"n2", "n4"}, ALL):
        assert standstills.hanging(frozenset(nodes), 2.0) == {"n2"}
    assert standstills.hanging(frozenset({"n1", "n4"}), 2.0) == NOBODY


def test_less_than_four_in_a_row_may_have_another_reason() -> None:
    standstills = Standstills(60.0)
    for _ in range(9):
        for _ in range(3):
            standstills.stood_still(ALL, 0.0)
        assert standstills.hanging(ALL, 0.0) == NOBODY
        standstills.went_on(ALL)


def test_now_and_then_one_copy_finds_out_whether_it_still_hangs() -> None:
    standstills = hung()
    tries = [second for second in range(4_000) if not standstills.hanging(ALL, float(second))]
    assert tries == [60, 180, 420, 900, 1_380, 1_860, 2_340, 2_820, 3_300, 3_780], "each may cost a thread"


def test_one_that_goes_on_is_like_any_other_again() -> None:
    standstills = hung()
    assert standstills.hanging(ALL, 100.0) == NOBODY
    standstills.went_on(ALL)
    assert [standstills.hanging(ALL, 101.0) for _ in range(9)] == [NOBODY] * 9
    for _ in range(4):
        standstills.stood_still(ALL, 200.0)
    assert standstills.hanging(ALL, 259.0) == ALL
    assert standstills.hanging(ALL, 260.0) == NOBODY
