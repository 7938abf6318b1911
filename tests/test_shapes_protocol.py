"""The protocol: fixed captions and noise, intervals over captions, paired differences."""

import subprocess
import sys

import numpy as np
import pytest

from flowrl.shapes import protocol


def test_importing_the_world_and_the_protocol_loads_no_torch() -> None:
    code = "import sys, flowrl.shapes, flowrl.shapes.world, flowrl.shapes.render, flowrl.shapes.protocol, flowrl.shapes.verify;"
    code += "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_seeds_are_distinct_and_above_every_training_seed() -> None:
    seeds = protocol.seeds()
    assert seeds.shape == (168, 4) and seeds.dtype == np.int64
    assert len(np.unique(seeds)) == seeds.size
    assert seeds.min() >= 2**40 and np.array_equal(seeds, protocol.seeds())


def test_accuracy_is_the_mean_and_its_interval_covers_it() -> None:
    rng = np.random.default_rng(0)
    scores = (rng.random((168, 4)) < rng.random((168, 1))).astype(float)
    tags = [row["tag"] for row in protocol.rows()]
    out = protocol.accuracy(scores, tags)
    assert out["overall"].mean == pytest.approx(scores.mean())
    assert set(out) == {"overall", *tags} and out["counting"].captions == 28
    for it in out.values():
        assert it.low < it.mean < it.high
    # The normal interval over captions.
    error = 1.96 * scores.mean(1).std(ddof=1) / np.sqrt(168)
    assert out["overall"].high - out["overall"].low == pytest.approx(2 * error, rel=0.1)


def test_whole_captions_are_resampled() -> None:
    scores = np.repeat(np.array([[0.0], [1.0]] * 50), 4, axis=1)
    four = protocol.accuracy(scores, ["a"] * 100)["overall"]
    one = protocol.accuracy(scores[:, :1], ["a"] * 100)["overall"]
    assert four == one


def test_a_difference_is_paired_by_caption() -> None:
    rng = np.random.default_rng(1)
    before = rng.random((50, 4))
    same = protocol.difference(before, before + 0.1)
    assert same.mean == pytest.approx(0.1) and same.error == pytest.approx(0, abs=1e-12)
    after = rng.random((50, 4))
    d = after.mean(1) - before.mean(1)
    assert protocol.difference(before, after).error == pytest.approx(d.std(ddof=1) / np.sqrt(50))


def test_mismatched_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="one tag a caption"):
        protocol.accuracy(np.zeros((3, 4)), ["a"] * 2)
    with pytest.raises(ValueError, match="same captions"):
        protocol.difference(np.zeros((3, 4)), np.zeros((4, 4)))
