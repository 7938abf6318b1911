"""The one table over all methods: the smallest arguments that keep a method's structure, and what each promises."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import toy

from flowrl import methods
from flowrl.loop import Parts, Session, begin
from flowrl.recipe import OptimSpec, PolicySpec, Recipe, RunSpec, SizesSpec
from flowrl.sizes import Sizes

Promise = Literal[True] | str
"""Kept, or why it is not made."""


class Row(NamedTuple):
    """zero_sum: advantages sum to 0 among the peers of a group.  shift, scale: a constant on all rewards of a run, or another
    unit, changes no credit.
    alone: why one image of a prompt is enough.  alias: the row whose plan and gradient these are, and what is new instead.
    ratio: compares likelihoods.  moving: its noise moves along the schedule.  unit: its rewards lie in [0, 1].  noisy: it trains a
    head for learned noise.  other: weight of a second reward that pulls the other way.  iterations: until it has learned the toy's
    reward.
    """

    args: dict[str, Any]
    zero_sum: Promise = True
    shift: Promise = True
    scale: Promise = True
    alias: tuple[str, str] | None = None
    ratio: bool = True
    moving: bool = False
    alone: str | None = None
    unit: bool = False
    noisy: bool = False
    other: float = 0.0
    iterations: int = 20


REWARD = "the advantage is the reward itself"
IMAGINED = "an imagined image has a fixed reward"

TABLE: dict[str, Row] = {
    "flow_grpo": Row({"group": 6, "clip": 1e-2, "beta": 1e-3}),
    "flow_grpo_fast": Row({"group": 6, "clip": 1e-2, "window": 2}, moving=True),
    "grpo_guard": Row({"group": 6, "clip": 1e-2}),
    "flow_dppo": Row({"group": 6, "threshold": 1e-2}),
    "flow_noise": Row({"group": 6, "low": 0.1, "high": 0.4}, noisy=True),
    "dance_grpo": Row({"group": 6, "clip": 1e-2, "updates": 2}),
    "mix_grpo": Row({"group": 6, "clip": 1e-2, "window": 2, "every": 2, "updates": 2}, moving=True),
    "mix_grpo_flash": Row({"group": 6, "clip": 1e-2, "window": 2, "every": 2, "updates": 2}, moving=True),
    "branch_grpo": Row({"group": 6, "clip": 1e-2, "points": (0, 2), "strength": 4.0, "fusion": "softmax", "updates": 2}),
    "tree_rpo": Row({"group": 4, "clip": 1e-2, "depth": 2, "every": 2, "updates": 2}, moving=True),
    "tempflow_grpo": Row({"group": 4, "teeth": 2, "clip": 1e-2}),
    "g2rpo": Row({"group": 4, "steps": 2, "strides": (1, 2), "clip": 1e-2}),
    "e_grpo": Row({"group": 6, "clip": 1e-2, "updates": 2}, moving=True),
    "flash_grpo": Row({"group": 6, "clip": 1e-2}, moving=True),
    "flow_cps": Row({"group": 6, "clip": 1e-2}),
    "precise": Row({"group": 6, "clip": 1e-2}),
    "sage_grpo": Row({"group": 6, "clip": 1e-2, "every": 2}),
    "longcat": Row({"group": 6, "clip": 1e-2}, moving=True),
    "hicogen": Row({"group": 6, "clip": 1e-2, "noise": 0.5, "updates": 2}),
    "ddpo": Row(
        {"group": 6, "clip": 1e-2, "noise": 0.7, "buffer": 12},
        zero_sum="compared with the batch or a prompt's earlier images",
        alone="it is compared with the batch and its past",
    ),
    "neighbor_grpo": Row({"group": 6, "anchors": 2, "clip": 0.2}),
    "pref_grpo": Row({"group": 6, "clip": 1e-2, "updates": 2}),
    "adv_grpo": Row(
        {"group": 6, "clip": 1e-2}, alias=("flow_grpo_fast", "its news is the reward, a discriminator trained along"), moving=True
    ),
    "gardo": Row(
        {"group": 6, "clip": 1e-2, "beta": 1e-3, "every": 3},
        zero_sum="good images count by how much they differ from the others",
        scale="centred rewards keep their unit",
    ),
    # made for several rewards: of one, the images that none dominates are the best of the whole batch, a single one
    "parrot": Row({"group": 6, "clip": 1e-2}, zero_sum=REWARD, shift=REWARD, scale=REWARD, other=0.05, iterations=30),
    "gdpo": Row({"group": 6, "clip": 1e-2, "beta": 1e-3}),
    "mc_grpo": Row({"group": 7, "clip": 1e-2, "beta": 1e-3}, zero_sum="centred on the median"),
    "ngrpo": Row({"group": 6, "best": 8.0, "low": 1e-2, "high": 1e-2}, zero_sum=IMAGINED, shift=IMAGINED, scale=IMAGINED),
    "dcpo": Row({"group": 6, "clip": 1e-2}, zero_sum="compared with a prompt's earlier images too"),
    "spo": Row(
        {"group": 6, "clip": 1e-2}, zero_sum="compared with what a prompt's tracker expects", alone="each has a tracker", unit=True
    ),
    "reg_grpo": Row({"group": 6}),
    "disco": Row({"group": 6, "limit": 1e-2}),
    "gspo": Row({"group": 6, "low": 1e-2, "high": 1e-2, "updates": 2}),
    "cispo": Row({"group": 6, "high": 1e-2, "updates": 2}),
    "diffusion_nft": Row({"group": 6, "draws": 4, "updates": 2}, ratio=False),
    "awm": Row({"group": 6, "updates": 2}),
    "dgpo": Row({"group": 6, "beta": 10.0, "clip": 0.5, "updates": 2}, ratio=False),
    "sft": Row({"group": 6, "best": 2, "draws": 4, "updates": 2}, zero_sum="the best are imitated, none is shunned", ratio=False),
    "rwr": Row(
        {"group": 6, "temperature": 0.3, "draws": 4, "updates": 2},
        zero_sum="all are imitated, the better the more",
        scale="the temperature has the reward's unit",
        alone="each counts by its reward",
        ratio=False,
    ),
    "diffusion_dpo": Row({"group": 6, "beta": 10.0, "pairs": 2, "draws": 4, "updates": 2}, ratio=False),
    "online_dpo": Row(
        {"group": 6, "beta": 10.0, "draws": 4, "every": 2, "updates": 2},
        alias=("diffusion_dpo", "its news is the reference, renewed every so many iterations"),
        ratio=False,
    ),
}
"""Every row of the table of methods."""


def parts(name: str, seed: int = 0) -> Parts:
    """The toy, with one reward that counts and one that only feeds gates, unless the row gives it a weight."""
    row = TABLE[name]
    recipe = Recipe(
        policy=PolicySpec(steps=toy.STEPS), sizes=SizesSpec(prompts=4, group=6), optim=OptimSpec(lr=1e-2), run=RunSpec(seed=seed)
    )
    rewards = {"toy": (toy.SUCCESS if row.unit else toy.REWARD, 1.0), "other": (toy.OTHER, row.other)}
    method = methods.TABLE[name](**row.args)
    return Parts(recipe, toy.Policy(noisy=row.noisy), method, rewards, toy.TEXTS, toy.WORLD, features=toy.features)


def session(of: Parts) -> Session:
    return begin(of, Sizes(slice=8, batch=12))
