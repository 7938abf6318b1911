"""The protocol: fixed captions and noise."""

import subprocess
import sys
from collections import Counter

import numpy as np

from flowrl.shapes import protocol
from flowrl.shapes.world import TAGS, unit


def test_importing_the_world_and_the_protocol_loads_no_torch() -> None:
    code = "import sys, flowrl.shapes, flowrl.shapes.world, flowrl.shapes.render, flowrl.shapes.protocol, flowrl.shapes.verify;"
    code += "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_seeds_are_distinct_and_above_every_training_seed() -> None:
    seeds = protocol.seeds()
    assert seeds.shape == (168, 4) and seeds.dtype == np.int64
    assert len(np.unique(seeds)) == seeds.size
    assert seeds.min() >= 2**40 and np.array_equal(seeds, protocol.seeds())


def test_training_captions_are_of_every_task_and_none_is_held_out() -> None:
    rows = protocol.training()
    counts = Counter(row["tag"] for row in rows)
    assert set(counts) == set(TAGS) and max(counts.values()) == protocol.EACH
    # single_object and colors have fewer captions than that in all.
    assert {tag for tag, count in counts.items() if count < protocol.EACH} <= {"single_object", "colors", "counting"}
    prompts = [row["prompt"] for row in rows]
    assert len(set(prompts)) == len(prompts)
    assert not {unit(row) for row in rows} & {unit(row) for row in protocol.rows()}
