"""The supervised loop never does more than it may, whatever it sees and whatever its clock does."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_ml.health_settings import ACTIONS, HealthSettings
from crypto_ml.supervisor import (
    DAY,
    LADDER,
    Decision,
    Look,
    State,
    Turn,
    begin_deed,
    decide,
    end_deed,
    observe_look,
    read_state,
    supervise,
    take_turn,
    write_state,
)

CHECKS = [*LADDER, "disk", "clock"]
VERSIONS = ("v1", "v2", "v3", "v4")
LIMITS = st.builds(
    HealthSettings,
    failures=st.integers(1, 3),
    recoveries=st.integers(1, 3),
    cool_down=st.sampled_from([0.0, 10.0, 45.0, 600.0]),
    most_per_day=st.integers(0, 4),
    actions=st.permutations(ACTIONS).flatmap(
        lambda x: st.integers(0, 5).map(lambda n: tuple(x[:n]))
    ),
)
LOOKS = st.lists(
    st.tuples(
        st.floats(1, 400),  # minutes since the look before
        st.sets(st.sampled_from(CHECKS), max_size=3),
        st.booleans(),  # whether an action works
        st.floats(0, 90),  # minutes that it takes
    ),
    max_size=60,
)


def played(
    limits: HealthSettings, looks: list, live: str = "v4"
) -> list[tuple[float, Decision, str]]:
    """Play looks through a world in which a rollback that works changes what is live."""
    state, now, done = State(), 0.0, []
    for minutes, failed, works, long in looks:
        now += minutes * 60
        earlier = tuple(name for name in reversed(VERSIONS) if name != live)
        look = Look(now, tuple(sorted(failed)), live, earlier)
        state = observe_look(state, look, limits)
        decision = decide(state, look, limits)
        if decision.action:
            done.append((now, decision, live))
            state = begin_deed(state, decision, now)
            now += long * 60
            state = end_deed(state, works, "", now)
            if decision.action == "rollback" and works:
                live = decision.target
    return done


@given(LIMITS, LOOKS)
@settings(max_examples=150)
def test_limits_hold_in_every_history(limits: HealthSettings, looks: list) -> None:
    done = played(limits, looks)
    times = [time for time, _, _ in done]
    for place, time in enumerate(times):
        within = [other for other in times[: place + 1] if other > time - DAY]
        assert len(within) <= limits.most_per_day
    for first, second in pairwise(times):
        assert second - first >= limits.cool_down * 60 - 1e-6
    for _, decision, _ in done:
        assert decision.action in limits.actions
        assert decision.action in LADDER[decision.problem]


@given(LIMITS, LOOKS)
@settings(max_examples=150)
def test_a_version_that_was_left_is_never_returned_to(limits: HealthSettings, looks: list) -> None:
    left: list[str] = []
    for _, decision, live in played(limits, looks):
        if decision.action == "rollback":
            left.append(live)
            assert decision.target and decision.target not in left


def test_a_version_that_somebody_promotes_again_may_be_left_again() -> None:
    limits = HealthSettings(failures=1, recoveries=1, cool_down=0.0, actions=("rollback",))
    state = State(live="v1", left=("v2",))
    state = observe_look(state, Look(60.0, (), "v2", ("v1",)), limits)
    assert state.left == ()
    look = Look(120.0, ("prediction",), "v2", ("v1",))
    state = observe_look(state, look, limits)
    assert decide(state, look, limits).target == "v1"


@given(st.integers(1, 5), st.integers(1, 5))
def test_one_sound_look_starts_the_counting_anew(failures: int, before: int) -> None:
    limits = HealthSettings(failures=failures + before, cool_down=0.0)
    state, now = State(), 0.0
    looks = [("candles",)] * (failures + before - 1) + [()] + [("candles",)] * before
    for failed in looks:
        now += 60
        look = Look(now, failed, "v1")
        state = observe_look(state, look, limits)
        assert not decide(state, look, limits).action or failures == 0


@given(st.floats(-1e6, 1e6))
def test_a_clock_that_is_set_costs_one_cool_down_at_most(shift: float) -> None:
    limits = HealthSettings(failures=1, recoveries=1, cool_down=30.0, actions=("sync",))
    look = Look(2e6, ("candles",), "v1")
    state = observe_look(State(), look, limits)
    state = end_deed(begin_deed(state, decide(state, look, limits), 2e6), True, "", 2e6)
    state = observe_look(state, Look(2e6 + shift, (), "v1"), limits)  # an incident ends
    later = Look(2e6 + shift + 31 * 60, ("candles",), "v1")
    assert decide(observe_look(state, later, limits), later, limits).action == "sync"


def test_each_action_once_per_incident_and_then_people() -> None:
    limits = HealthSettings(failures=1, cool_down=0.0, most_per_day=99, actions=ACTIONS)
    looks = [(10.0, {"production"}, False, 0.0)] * 9
    done = [decision.action for _, decision, _ in played(limits, looks)]
    assert done == ["reload", "repair", "rollback"]
    state = State(failing={"production": 9}, tried=("reload", "repair", "rollback"))
    assert decide(state, Look(0.0, ("production",), "v1"), limits).nothing_left


def test_nothing_of_ours_mends_a_disk() -> None:
    limits = HealthSettings(failures=1, cool_down=0.0, actions=ACTIONS)
    assert played(limits, [(10.0, {"disk", "clock"}, True, 0.0)] * 5) == []


# The state on disk


class Killed(BaseException):
    """As a SIGKILL: nothing catches it."""


def test_a_restart_remembers_even_an_action_that_killed_the_loop(tmp_path: Path) -> None:
    limits, path = HealthSettings(failures=1, cool_down=30.0), tmp_path / "models" / "watch.json"

    def dies(_decision: Decision) -> str:
        raise Killed

    with pytest.raises(Killed):
        take_turn(path, Look(1000.0, ("candles",), "v1"), limits, {"sync": dies})
    turn = take_turn(path, Look(1060.0, ("candles",), "v1"), limits, {"sync": dies})
    assert not turn.decision.action and "cooling down" in turn.decision.why
    assert turn.state.deeds[0].outcome == "begun"


@pytest.mark.parametrize("content", [b"", b"{", b'{"seen": "soon"}', b"\xff\xfe"])
def test_a_damaged_state_waits_for_a_cool_down(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "watch.json"
    path.write_bytes(content)
    limits = HealthSettings(failures=1, cool_down=30.0)
    acts = {"sync": lambda _decision: "done"}
    first = take_turn(path, Look(0.0, ("candles",), "v1"), limits, acts, lambda: 0.0)
    assert not first.decision.action
    second = take_turn(path, Look(1860.0, ("candles",), "v1"), limits, acts, lambda: 1860.0)
    assert second.decision.action == "sync" and second.done


def test_the_state_survives_the_disk(tmp_path: Path) -> None:
    path, state = tmp_path / "watch.json", State(seen=5.0, live="v1", left=("v2",), tried=("sync",))
    write_state(path, state)
    assert read_state(path, 9.0) == state


def test_the_loop_outlives_an_action_that_fails_and_stops_when_told(tmp_path: Path) -> None:
    now, told = [0.0], []

    def wait(seconds: float) -> bool:
        now[0] += seconds
        return now[0] > 3000

    def fails(_decision: Decision) -> str:
        raise OSError("no route")

    count = supervise(
        lambda: Look(now[0], ("candles",), "v1"),
        tmp_path / "watch.json",
        HealthSettings(failures=1, every=10.0),
        {"sync": fails},
        wait=wait,
        tell=told.append,
        clock=lambda: now[0],
    )
    assert count == len(told) == 6
    turn: Turn = told[0]
    assert turn.done is False and turn.words == "OSError: no route"


@pytest.mark.parametrize(("minutes", "action"), [(29.9, ""), (30.0, "repair")])
def test_the_cool_down_begins_when_an_action_is_over(minutes: float, action: str) -> None:
    limits = HealthSettings(failures=1, cool_down=30.0)
    look = Look(0.0, ("production",), "v1")
    state = observe_look(State(), look, limits)
    state = end_deed(begin_deed(state, decide(state, look, limits), 0.0), True, "", 3600.0)
    later = Look(3600.0 + minutes * 60, ("production",), "v1")
    assert decide(observe_look(state, later, limits), later, limits).action == action
