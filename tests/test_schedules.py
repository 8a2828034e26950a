"""Pipeline schedules: complete, free of deadlocks, and as short and small as the papers say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from workbench.schedules import (
    SCHEDULES,
    Action,
    Actions,
    Kind,
    Timeline,
    bubble,
    check,
    ideal_bubble,
    most_in_flight,
    timeline,
)

SIZES = [(ranks, micros) for ranks in range(1, 9) for micros in range(1, 33)]
CASES = [("gpipe", 1), ("1f1b", 1), ("zb-h1", 1), ("interleaved", 2), ("interleaved", 3)]


def run(actions: Actions, stages: int, forward: float, inputs: float, weight: float) -> Timeline:
    """Let every stage cost the same."""
    return timeline(actions, [forward] * stages, [inputs] * stages, [weight] * stages)


def length(times: Timeline) -> float:
    return max(stop for own in times for _, stop, _ in own)


def lists(name: str, chunks: int = 1) -> Iterator[tuple[int, int, Actions]]:
    for ranks, micros in SIZES:
        yield ranks, micros, SCHEDULES[name].actions(ranks, chunks, micros)


@pytest.mark.parametrize(("name", "chunks"), CASES)
def test_every_schedule_is_complete_and_ends(name: str, chunks: int) -> None:
    for ranks, micros, actions in lists(name, chunks):
        assert len(actions) == ranks
        check(actions, ranks * chunks, micros)


@pytest.mark.parametrize(("name", "chunks"), CASES)
def test_all_stages_add_up_gradients_in_the_same_order(name: str, chunks: int) -> None:
    last = "weight" if SCHEDULES[name].splits_backward else "backward"
    for ranks, micros, actions in lists(name, chunks):
        for stage in range(ranks * chunks):
            own = [a for a in actions[stage % ranks] if a.stage == stage]
            for kind in ("forward", last):
                assert [a.micro for a in own if a.kind == kind] == list(range(micros))


@pytest.mark.parametrize(("name", "chunks"), CASES)
def test_only_zero_bubble_has_halves(name: str, chunks: int) -> None:
    kinds = {a.kind for own in SCHEDULES[name].actions(3, chunks, 4) for a in own}
    halves = {"input", "weight"} if SCHEDULES[name].splits_backward else {"backward"}
    assert kinds == {"forward", *halves}
    assert SCHEDULES[name].splits_backward == (name == "zb-h1")


def written(actions: Actions) -> list[str]:
    """Return a list per rank, such as "F0 F1 B0 B1"."""
    letters = {"forward": "F", "backward": "B", "input": "I", "weight": "W"}
    return [" ".join(f"{letters[a.kind]}{a.micro}" for a in own) for own in actions]


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("gpipe", "F0 F1 F2 F3 B0 B1 B2 B3", "F0 F1 F2 F3 B0 B1 B2 B3"),
        ("1f1b", "F0 F1 F2 B0 F3 B1 B2 B3", "F0 B0 F1 B1 F2 B2 F3 B3"),
        ("zb-h1", "F0 F1 F2 I0 W0 F3 I1 W1 I2 W2 I3 W3", "F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3"),
    ],
)
def test_the_lists_of_the_first_and_the_last_of_three_ranks(
    name: str, first: str, last: str
) -> None:
    one, _, three = written(SCHEDULES[name].actions(3, 1, 4))
    assert (one, three) == (first, last)


def test_interleaved_takes_rounds_through_all_chunks_and_leaves_out_what_is_not_there() -> None:
    whole = SCHEDULES["interleaved"].actions(2, 2, 4)
    forwards = [(a.stage, a.micro) for a in whole[0] if a.kind == "forward"]
    assert forwards == [(0, 0), (0, 1), (2, 0), (2, 1), (0, 2), (0, 3), (2, 2), (2, 3)]
    backwards = [(a.stage, a.micro) for a in whole[0] if a.kind == "backward"]
    assert backwards == [(2, 0), (2, 1), (0, 0), (0, 1), (2, 2), (2, 3), (0, 2), (0, 3)]
    short = SCHEDULES["interleaved"].actions(2, 2, 3)
    assert [[a for a in own if a.micro < 3] for own in whole] == [list(own) for own in short]


# Memory.


def test_gpipe_keeps_every_micro_batch_and_1f1b_no_more_than_there_are_ranks_to_come() -> None:
    for ranks, micros, actions in lists("gpipe"):
        assert most_in_flight(actions) == (micros,) * ranks
    for ranks, micros, actions in lists("1f1b"):
        assert most_in_flight(actions) == tuple(min(micros, ranks - r) for r in range(ranks))


def test_zb_h1_keeps_no_more_anywhere_than_1f1b_on_its_first_rank() -> None:
    """Rank r keeps p - r whole, as 1F1B does, and r for their weight halves only (section 2.1)."""
    for ranks, micros, actions in lists("zb-h1"):
        assert most_in_flight(actions) == (min(micros, ranks),) * ranks
        # Counted as if it were the input half that ends a micro-batch.
        swapped: dict[str, Kind] = {"forward": "forward", "input": "weight", "weight": "input"}
        until_input = [[replace(a, kind=swapped[a.kind]) for a in own] for own in actions]
        assert most_in_flight(until_input) == tuple(min(micros, ranks - r) for r in range(ranks))


@pytest.mark.parametrize("chunks", [2, 3])
def test_interleaved_keeps_what_its_warm_up_and_one_more_forward_need(chunks: int) -> None:
    for ranks, micros, actions in lists("interleaved", chunks):
        bound = [
            min(micros * chunks, 2 * (ranks - 1 - r) + (chunks - 1) * ranks + 1)
            for r in range(ranks)
        ]
        most = most_in_flight(actions)
        assert all(have <= limit for have, limit in zip(most, bound, strict=True))
        if micros % ranks == 0:
            assert list(most) == bound


def test_halves_count_until_the_weights_are_done() -> None:
    one = [Action("forward", 0, 0), Action("input", 0, 0)]
    two = [Action("forward", 0, 1), Action("input", 0, 1)]
    weights = [Action("weight", 0, 0), Action("weight", 0, 1)]
    assert most_in_flight([[*one, *two, *weights], [*one, weights[0], *two, weights[1]], []]) == (
        2,
        1,
        0,
    )


# Time.


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_the_bubble_is_the_ideal_one(name: str) -> None:
    for ranks, micros, actions in lists(name):
        assert bubble(run(actions, ranks, 1, 1, 1)) == ideal_bubble(ranks, micros)
        for costs in [(2, 1, 1), (1, 3, 2)]:  # filling and draining take one step per other rank
            times = run(actions, ranks, *costs)
            assert length(times) == (micros + ranks - 1) * sum(costs)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_the_formula_that_is_told_gives_the_share_that_is_told(name: str) -> None:
    chunks = 2 if name == "interleaved" else 1
    for ranks, micros, _ in lists(name, chunks):
        share, formula = SCHEDULES[name].bubble(ranks, chunks, micros)
        if formula.startswith("("):
            terms = formula.replace("3 m", "3 * m").replace("2 m", "2 * m")
            assert share == pytest.approx(eval(terms, {"p": ranks, "m": micros}))
        else:
            assert name in ("interleaved", "zb-h1")
            assert micros % ranks or micros < ranks


@pytest.mark.parametrize("chunks", [2, 3])
def test_the_bubble_of_whole_rounds_shrinks_with_the_chunks(chunks: int) -> None:
    for ranks, micros, actions in lists("interleaved", chunks):
        if micros % ranks == 0:
            times = run(actions, ranks * chunks, 1, 1, 1)
            assert bubble(times) == ideal_bubble(ranks, micros, chunks)


@pytest.mark.parametrize("chunks", [2, 3])
def test_a_short_round_takes_no_longer_than_a_whole_one(chunks: int) -> None:
    for ranks, micros, actions in lists("interleaved", chunks):
        padded = -(-micros // ranks) * ranks
        limit = 3 * (chunks * padded + ranks - 1)
        assert length(run(actions, ranks * chunks, 1, 1, 1)) <= limit


@pytest.mark.parametrize("costs", [(1, 1, 1), (2, 2, 1), (2, 3, 1), (3, 2, 2)])
def test_zb_h1_idles_as_little_as_the_paper_says(costs: tuple[int, int, int]) -> None:
    """With m >= p, each rank idles (p - 1)(F + I - W) instead of (p - 1)(F + I + W) in 1F1B.

    The formula needs W <= F and W <= I. With fewer micro-batches there are fewer weight halves
    to fill with, so p - m of them come on top, which is still less than in 1F1B.
    """
    forward, inputs, weight = costs
    for ranks, micros, actions in lists("zb-h1"):
        halves = run(actions, ranks, *costs)
        plain = run(SCHEDULES["1f1b"].actions(ranks, 1, micros), ranks, *costs)
        idle = (ranks - 1) * (forward + inputs - weight) + max(0, ranks - micros) * weight
        assert length(halves) == micros * sum(costs) + idle
        assert length(plain) == (micros + ranks - 1) * sum(costs)
        assert bubble(halves) == idle / (micros * sum(costs) + idle)
        assert bubble(halves) < bubble(plain) or ranks == 1


def test_a_timeline_is_worked_out_by_hand() -> None:
    """Rank 1 is slow; rank 0 waits for it after its warm-up."""
    actions = SCHEDULES["1f1b"].actions(2, 1, 2)
    times = timeline(actions, forward_s=[1, 2], input_s=[1, 3], weight_s=[0.5, 1])
    assert times == (
        (
            (0, 1, Action("forward", 0, 0)),
            (1, 2, Action("forward", 0, 1)),
            (7, 8.5, Action("backward", 0, 0)),
            (13, 14.5, Action("backward", 0, 1)),
        ),
        (
            (1, 3, Action("forward", 1, 0)),
            (3, 7, Action("backward", 1, 0)),
            (7, 9, Action("forward", 1, 1)),
            (9, 13, Action("backward", 1, 1)),
        ),
    )
    assert bubble(times) == (2 * 14.5 - (5 + 12)) / (2 * 14.5)


def test_the_stage_before_waits_for_the_input_half_only() -> None:
    times = run(SCHEDULES["zb-h1"].actions(2, 1, 1), 2, 1, 1, 5)
    assert times[0][1] == (3, 4, Action("input", 0, 0))
    assert times[1][2] == (3, 8, Action("weight", 1, 0))


def test_one_rank_never_waits() -> None:
    assert ideal_bubble(1, 5) == 0
    assert bubble(run(SCHEDULES["1f1b"].actions(1, 1, 5), 1, 1, 1, 1)) == 0
    assert bubble(run(SCHEDULES["1f1b"].actions(1, 1, 5), 1, 0, 0, 0)) == 0


# Wrong lists and numbers.

F00, F01, F10, F11 = (Action("forward", s, m) for s in (0, 1) for m in (0, 1))
B00, B01, B10, B11 = (Action("backward", s, m) for s in (0, 1) for m in (0, 1))
I00, W00 = Action("input", 0, 0), Action("weight", 0, 0)
GOOD = [[F00, F01, B00, B01], [F10, B10, F11, B11]]


def test_good_lists_pass_with_whole_backwards_or_halves_and_in_a_strange_order_that_ends() -> None:
    check(GOOD, 2, 2)
    check([GOOD[0], [F11, F10, B11, B10]], 2, 2)
    check([[F00, F01, I00, B01, W00], GOOD[1]], 2, 2)


@pytest.mark.parametrize(
    ("actions", "complaint"),
    [
        ([[F00, F01, B00], GOOD[1]], "no rank has the input half .* of micro-batch 1 on stage 0"),
        ([[F00, F01, I00, B01], GOOD[1]], "no rank has the weight half .* 0 on stage 0"),
        ([GOOD[0], [F10, B10]], "no rank has the forward of micro-batch 1 on stage 1"),
        ([GOOD[0], [*GOOD[1], F11]], "rank 1 has the forward of micro-batch 1 on stage 1 twice"),
        ([[*GOOD[0], W00], GOOD[1]], "rank 0 has the weight half .* twice"),
        ([[*GOOD[0], F11], GOOD[1]], "rank 0 has the forward .* on stage 1, which is not its"),
        ([GOOD[1], GOOD[0]], "rank 0 .* on stage 1, which is not its stage"),
        ([[*GOOD[0], Action("forward", 0, 2)], GOOD[1]], "micro-batch 2 .* which there is not"),
        ([[*GOOD[0], Action("forward", 2, 0)], GOOD[1]], "on stage 2, which there is not"),
        ([[B00, F00, F01, B01], GOOD[1]], "rank 0 has the backward .* without its forward before"),
        ([[F00, F01, W00, I00, B01], GOOD[1]], "the weight half .* without its input before it"),
        # Rank 0 wants a backward before it lets rank 1 have what comes first there.
        (
            [[F00, B00, F01, B01], [F10, F11, B10, B11]],
            "deadlock: rank 0 waits for ever for the input",
        ),
        ([[F00, B00, F01, B01], [F11, F10, B11, B10]], "deadlock: rank 0 waits"),
    ],
)
def test_a_wrong_list_is_refused(actions: list[list[Action]], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check(actions, 2, 2)


@pytest.mark.parametrize(("name", "chunks"), CASES)
def test_every_list_with_any_one_action_left_out_is_refused(name: str, chunks: int) -> None:
    actions = SCHEDULES[name].actions(2, chunks, 3)
    for rank, own in enumerate(actions):
        for index in range(len(own)):
            broken = [list(other) for other in actions]
            del broken[rank][index]
            with pytest.raises(ValueError, match=r"no rank has|without its"):
                check(broken, 2 * chunks, 3)


def test_a_timeline_of_lists_that_wait_for_each_other_is_refused() -> None:
    with pytest.raises(ValueError, match="deadlock"):
        run([[F00, B00, F01, B01], [F10, F11, B10, B11]], 2, 1, 1, 1)


@pytest.mark.parametrize(
    ("name", "numbers", "complaint"),
    [
        ("1f1b", (2, 2, 4), "1F1B needs one chunk per rank; got 2"),
        ("zb-h1", (2, 0, 4), "needs one chunk per rank; got 0"),
        ("interleaved", (2, 1, 4), "Interleaved 1F1B needs two or more chunks per rank; got 1"),
        ("gpipe", (0, 1, 4), "no pipeline of 0 ranks"),
        ("gpipe", (2, 1, 0), "and 0 micro-batches"),
    ],
)
def test_no_such_pipeline(name: str, numbers: tuple[int, int, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        SCHEDULES[name].actions(*numbers)


def test_every_schedule_says_what_it_is_and_names_its_paper() -> None:
    assert list(SCHEDULES) == ["gpipe", "1f1b", "interleaved", "zb-h1"]
    for name, schedule in SCHEDULES.items():
        assert schedule.name == name
        assert "et al." in schedule.summary
        assert "\n" not in schedule.summary
        assert schedule.allows(1) != schedule.allows(2)
