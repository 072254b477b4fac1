"""A room is bounded, says so at once, and says when to come again."""

import pytest

from app.errors import Overloaded
from app.rooms import Room
from app.visits import Visit, visiting


def room(capacity: int = 100) -> Room:
    return Room("images", "images wait", capacity)


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    full = room()
    full.enter(60)
    full.enter(40)
    visit = Visit()
    with visiting(visit), pytest.raises(Overloaded, match=r"^100 images wait and 1 more would pass the limit of 100; ask again in 1 s$"):
        full.enter(1)
    assert visit.refused == "images"
    assert full.amount == 100
    full.leave(40)
    full.enter(40)


def test_alone_any_amount_is_let_in_and_none_is_let_in_always() -> None:
    small = room(1)
    small.enter(5000)
    small.enter(0)
    with pytest.raises(Overloaded):
        small.enter(1)


def test_the_time_to_come_again_is_what_is_here_at_the_speed_of_late() -> None:
    full = room()
    full.enter(100)
    for _ in range(50):
        full.note(10, 5.0)
    with pytest.raises(Overloaded) as caught:
        full.enter(1)
    assert caught.value.headers["Retry-After"] == "50"


def test_at_the_door_all_are_refused_from_when_one_found_no_room_until_there_is_some() -> None:
    full = room(160)
    full.enter(155)
    full.refuse_while_full()
    with pytest.raises(Overloaded):
        full.enter(6)
    full.leave(4)
    with pytest.raises(Overloaded, match=r"^151 images wait, and the limit is 160; ask again in 1 s$"):
        full.refuse_while_full()
    full.leave(1)
    full.refuse_while_full()
    full.enter(10)
    full.refuse_while_full()


def test_what_is_held_is_given_back_however_the_block_ends() -> None:
    held = room()
    with held.holding(70):
        assert held.amount == 70
    with pytest.raises(ZeroDivisionError), held.holding(70):
        raise ZeroDivisionError
    assert held.amount == 0
    with held.holding(100), pytest.raises(Overloaded), held.holding(1):
        pass
    assert held.amount == 0


def test_more_can_be_held_as_it_comes_and_alone_any_amount() -> None:
    held = room()
    with held.holding(0) as hold:
        hold(90)
        hold(90)
        with pytest.raises(Overloaded), held.holding(1):
            pass
    with held.holding(20) as hold, held.holding(70):
        hold(10)
        with pytest.raises(Overloaded, match=r"^100 images wait and 1 more"):
            hold(1)
    assert held.amount == 0


def test_what_holds_nothing_changes_nothing_of_the_time_to_come_again_and_nobody_waits_longer_than_a_minute() -> None:
    full = room()
    full.enter(100)
    full.note(10, 5.0)
    for _ in range(5000):
        with full.holding(0):
            pass
    with pytest.raises(Overloaded, match="ask again in 50 s"):
        full.enter(1)
    full.note(0, 1e300)
    with pytest.raises(Overloaded, match="ask again in 60 s"):
        full.enter(1)
