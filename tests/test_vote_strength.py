"""What votes are worth: strengths, win rates, a learned head, and their intervals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrl.rewards.votes import head
from flowrl.rewards.votes.strength import parts, strengths, win_rates

Wins = dict[tuple[tuple[str, str], tuple[str, str]], float]


def item(index: int, prompt: str = "p") -> tuple[str, str]:
    return prompt, f"{index:03d}"


def expected(strength: np.ndarray, games: float) -> Wins:
    """Wins as the model itself expects them of so many games a pair."""
    chance = 1 / (1 + np.exp(strength[None] - strength[:, None]))
    pairs = itertools.permutations(range(len(strength)), 2)
    return {(item(a), item(b)): games * float(chance[a, b]) for a, b in pairs}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=7))
def test_known_strengths_are_recovered_from_many_votes(values: list[float]) -> None:
    true = np.array(values) - np.mean(values)
    found = strengths(expected(true, 1e7))
    assert [found[item(i)] for i in range(len(true))] == pytest.approx(true.tolist(), abs=1e-4)


def test_two_images_have_the_closed_form_of_one_equation() -> None:
    """With w wins of n and prior std t, the gap g = 2 s solves w - n / (1 + exp(-g)) = s / t^2."""
    found = strengths({(item(0), item(1)): 7.0, (item(1), item(0)): 2.0}, prior=1.5)
    s = found[item(0)]
    assert found[item(1)] == pytest.approx(-s, abs=1e-14)
    assert 7 - 9 / (1 + math.exp(-2 * s)) == pytest.approx(s / 1.5**2, abs=1e-12)


GAMES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from([1.0, 0.5])), min_size=1, max_size=25)


@settings(max_examples=40, deadline=None)
@given(GAMES, st.randoms(use_true_random=False))
def test_the_order_of_votes_changes_no_bit(games: list[tuple[int, int, float]], random: object) -> None:
    def tally(of: list[tuple[int, int, float]]) -> Wins:
        wins: Wins = {}
        for a, b, share in of:
            if a != b:
                for pair, won in (((item(a), item(b)), share), ((item(b), item(a)), 1 - share)):
                    wins[pair] = wins.get(pair, 0.0) + won
        return wins

    mixed = list(games)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert strengths(tally(games)) == strengths(tally(mixed))


@settings(max_examples=40, deadline=None)
@given(GAMES)
def test_the_found_strengths_are_a_maximum_and_centred(games: list[tuple[int, int, float]]) -> None:
    wins: Wins = {}
    for a, b, share in games:
        if a != b:
            wins[item(a), item(b)] = wins.get((item(a), item(b)), 0.0) + share
    found = strengths(wins)
    assert all(map(math.isfinite, found.values()))
    for one, s in found.items():
        slope = -s / 9
        for other, o in found.items():
            chance = 1 / (1 + math.exp(o - s))
            slope += wins.get((one, other), 0.0) * (1 - chance) - wins.get((other, one), 0.0) * chance
        assert slope == pytest.approx(0, abs=1e-9)
    for part in parts(wins):
        assert sum(found[one] for one in part) == pytest.approx(0, abs=1e-9)


def test_parts_that_never_met_do_not_touch_each_other() -> None:
    first: Wins = {(item(0), item(1)): 3.0, (item(1), item(0)): 1.0}
    second: Wins = {(item(0, "q"), item(1, "q")): 1.0, (item(1, "q"), item(0, "q")): 9.0}
    both = strengths({**first, **second})
    assert both == {**strengths(first), **strengths(second)}
    assert parts({**first, **second}) == [[item(0), item(1)], [item(0, "q"), item(1, "q")]]


def test_a_winner_of_everything_is_finite_and_more_wins_say_more() -> None:
    few, many = (strengths({(item(0), item(1)): n})[item(0)] for n in (1.0, 100.0))
    assert 0 < few < many < 10


def test_win_rates_count_a_tie_as_half() -> None:
    wins: Wins = {(item(0), item(1)): 1.5, (item(1), item(0)): 0.5, (item(2), item(0)): 1.0}
    assert win_rates(wins) == {item(0): 0.5, item(1): 0.25, item(2): 1.0}


@pytest.mark.parametrize(("wins", "prior"), [({(item(0), item(1)): -1.0}, 3.0), ({(item(0), item(1)): 1.0}, 0.0)])
def test_what_is_no_count_is_refused(wins: Wins, prior: float) -> None:
    with pytest.raises(ValueError, match="negative or not finite|above 0"):
        strengths(wins, prior)


def made(count: int, prompts: int, signal: float, dims: int = 12) -> tuple[head.Pairs, np.ndarray]:
    rng = np.random.default_rng(3)
    gap, weight = rng.normal(size=(count, dims)) / dims**0.5, rng.normal(size=dims)
    share = (rng.random(count) < 1 / (1 + np.exp(-signal * gap @ weight))).astype(float)
    share[::17] = 0.5
    return head.Pairs(gap, share, [f"prompt {i % prompts}" for i in range(count)], gap[:, 0]), weight


def test_a_taste_in_the_features_is_learned_and_noise_is_not() -> None:
    pairs, weight = made(600, 30, 8.0)
    found = head.learn(pairs)
    assert found.heldout.rate > 0.85 and found.heldout.low > 0.8 and found.heldout.n == int((pairs.share != 0.5).sum())
    assert np.corrcoef(found.weight, weight)[0, 1] > 0.95
    nothing = head.learn(made(600, 30, 0.0)[0])
    assert nothing.heldout.low < 0.5 < nothing.heldout.high


def test_heldout_accuracy_never_sees_the_votes_it_judges() -> None:
    """More features than votes: the head fits its own votes perfectly, and held-out ones at chance."""
    pairs, _ = made(60, 20, 0.0, dims=200)
    own = head.accuracy(pairs.gap @ head.fit(pairs), pairs.share)
    assert own.rate == 1.0 and head.learn(pairs).heldout.rate < 0.75
    fold = head.folds(pairs.prompt)
    assert set(fold) == set(range(5))
    assert all(len({f for f, p in zip(fold, pairs.prompt, strict=True) if p == prompt}) == 1 for prompt in pairs.prompt)


def test_one_prompt_has_no_heldout_accuracy() -> None:
    found = head.learn(made(40, 1, 4.0)[0])
    assert found.heldout.n == 0 and math.isnan(found.heldout.rate) and np.isfinite(found.weight).all()


def test_the_fit_is_the_maximum_whatever_the_order() -> None:
    pairs, _ = made(80, 8, 3.0)
    weight = head.fit(pairs)
    chance = 1 / (1 + np.exp(-pairs.gap @ weight))
    size = (pairs.gap**2).sum(1).mean()
    slope = pairs.gap.T @ (pairs.share - chance) - weight * size / head.SPREAD**2
    assert np.abs(slope).max() < 1e-9
    order = np.random.default_rng(0).permutation(80)
    turned = head.Pairs(-pairs.gap[order], 1 - pairs.share[order], [pairs.prompt[i] for i in order], pairs.plain[order])
    assert head.fit(turned) == pytest.approx(weight, abs=1e-9)


def test_equal_features_teach_nothing() -> None:
    with pytest.raises(ValueError, match="all the same features"):
        head.fit(head.Pairs(np.zeros((3, 4)), np.ones(3), ["a", "b", "c"], np.zeros(3)))


def test_wilsons_interval_has_its_published_values() -> None:
    # Newcombe (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    published = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0.0, 0.1611), (1, 29): (0.0061, 0.1718)}
    for (won, n), interval in published.items():
        assert head.wilson(won / n, n) == pytest.approx(interval, abs=5e-5)
