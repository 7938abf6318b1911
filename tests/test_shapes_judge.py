"""The second opinion agrees with the verifier on renderings, and rejects what it should."""

import ast
from pathlib import Path

import numpy as np
import pytest

from flowrl.shapes import judge, verify
from flowrl.shapes.paths import asset
from flowrl.shapes.render import draw
from flowrl.shapes.world import OPPOSITE, TAGS, Row, captions, entry

HELD = captions("heldout")


def row(*include) -> Row:
    return {"tag": "two_object", "include": list(include), "prompt": "unread"}


def test_the_judge_shares_no_code_with_the_verifier() -> None:
    tree = ast.parse(Path(judge.__file__).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {m for m in modules if m and m.startswith("flowrl")} == {"flowrl.shapes.paths", "flowrl.shapes.world"}


@pytest.mark.parametrize("tag", TAGS)
def test_it_agrees_with_the_verifier_on_renderings(tag: str) -> None:
    rows = [it for it in HELD if it["tag"] == tag] * 4
    images, _ = draw(rows, 21)
    assert (judge.judge(images, rows) == verify.score(images, rows)).mean() >= 0.95


def test_it_agrees_on_captions_of_other_pictures() -> None:
    images, _ = draw(HELD, 22)
    other = [HELD[i] for i in np.random.default_rng(0).permutation(len(HELD))]
    assert (judge.judge(images, other) == verify.score(images, other)).mean() >= 0.95


def test_it_rejects_wrong_colours_counts_and_relations() -> None:
    pair = row(entry("circle", 1, "red"), entry("square", 1, "blue"))
    images, _ = draw([pair] * 12, 23)
    assert judge.judge(images, [row(entry("circle", 1, "blue"), entry("square", 1, "red"))] * 12).mean() <= 0.05
    three, _ = draw([row(entry("cross", 3))] * 12, 24)
    assert judge.judge(three, [row(entry("cross", 2))] * 12).mean() <= 0.05
    for relation, opposite in OPPOSITE.items():
        images, _ = draw([row(entry("circle"), entry("square", position=(relation, 0)))] * 6, 25)
        assert not judge.judge(images, [row(entry("circle"), entry("square", position=(opposite, 0)))] * 6).any()


def test_blank_and_noise_are_rejected() -> None:
    blank = np.full((len(HELD), 64, 64, 3), 240, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, blank.shape, dtype=np.uint8)
    assert judge.judge(blank, HELD).mean() == 0 and judge.judge(noise, HELD).mean() <= 0.02


def test_features_tell_pictures_apart() -> None:
    images, _ = draw(HELD[:8], 26)
    features = judge.features(images)
    assert features.shape == (8, 4 * judge.WIDTH) and np.isfinite(features).all()
    distance = np.linalg.norm(features[:, None] - features[None], axis=-1)
    assert (distance[np.triu_indices(8, 1)] > 0).all()
    assert np.allclose(judge.features(images[:3]), features[:3], atol=1e-4)


def test_the_reward_form_is_the_judge() -> None:
    images, rows = draw(HELD[:10], 27)
    assert judge.reward(images, ["unread"] * 10, rows) == judge.judge(images, rows).tolist()


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8 pictures"):
        judge.judge(np.zeros((1, 32, 32, 3), np.uint8), HELD[:1])
    with pytest.raises(ValueError, match="one row a picture"):
        judge.judge(np.zeros((2, 64, 64, 3), np.uint8), HELD[:1])


def test_a_missing_asset_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="'no-such' is not in this installation"):
        asset("no-such")
