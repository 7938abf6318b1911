"""The embedded default: a tiny Stable Diffusion 3 on the shapes world, minutes on a CPU."""

from __future__ import annotations

from flowrl.recipe import (
    DataSpec,
    EvalSpec,
    LoraSpec,
    MethodSpec,
    OptimSpec,
    PolicySpec,
    Recipe,
    RewardSpec,
    RunSpec,
    SizesSpec,
)


def shapes() -> Recipe:
    """MixGRPO on the embedded model with the soft verifier as its reward; the strict one looks at held-out captions."""
    return Recipe(
        method=MethodSpec(
            "mix_grpo", {"law": "flow_sde", "noise": 0.7, "window": 3, "every": 1, "skip_last": 2, "clip": 1e-4, "updates": 1}
        ),
        policy=PolicySpec(model="shapes", dtype="bfloat16", steps=10, max_sequence_length=16, lora=LoraSpec(rank=32, alpha=64.0)),
        rewards=(RewardSpec("shapes:soft"),),
        data=DataSpec(prompts="shapes"),
        optim=OptimSpec(lr=3e-4, weight_decay=0.0),
        sizes=SizesSpec(prompts=8, group=12, slice=32, batch=96),
        evaluate=EvalSpec(
            every=10,
            quick=84,
            images=4,
            steps=20,
            guidance=1.0,
            rewards=("shapes:strict",),
        ),
        run=RunSpec(name="shapes", iterations=80, minutes=9.5),
    )
