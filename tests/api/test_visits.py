"""What a client may say of its deadline, and what a visit tells."""

import pytest

from app.visits import Visit, current, deadline, visiting


@pytest.mark.parametrize(
    ("preferences", "granted"),
    [
        (["wait=10"], (10, "wait=10")),
        (["respond-async, wait=10"], (10, "wait=10")),
        (["respond-async", "Wait = 10"], (10, "wait=10")),
        (['return=minimal; foo="x", wait="7"; bar'], (7, "wait=7")),
        (["wait=5, wait=9"], (5, "wait=5")),
        (["wait=0"], (0, "wait=0")),
        (["wait=60"], (60, "wait=60")),
        (["wait=61"], (60, None)),
        (["wait=9999999999"], (60, None)),
        (["wait=-1"], (60, None)),
        (["wait=1.5"], (60, None)),
        (["wait=ten"], (60, None)),
        (["await=3"], (60, None)),
        (["x; wait=3"], (60, None)),
        ([""], (60, None)),
        ([], (60, None)),
    ],
)
def test_a_shorter_deadline_is_granted_and_all_else_is_passed_over(preferences: list[str], granted: tuple[float, str | None]) -> None:
    assert deadline(preferences, 60) == granted


def test_where_there_is_no_deadline_each_that_is_asked_for_is_granted() -> None:
    assert (deadline([], None), deadline(["wait=86401"], None)) == ((None, None), (86401, "wait=86401"))


def test_times_add_up_in_the_order_of_their_phases() -> None:
    visit = Visit()
    with visiting(visit):
        current().spend("queue", 0.25)
        current().spend("run", 0.0015)
        current().spend("queue", 0.25)
    assert visit.server_timing == "queue;dur=500.000, run;dur=1.500"
    current().spend("run", 1)  # of no request: nobody tells of it
    assert visit.server_timing == "queue;dur=500.000, run;dur=1.500"
