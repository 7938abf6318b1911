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
    """DiffusionNFT on the embedded model.

    The verifier is the reward on training captions: its strict verdict, plus its soft score for groups without a right picture.
    Its strict verdict judges held-out captions, and so does a second judge that shares no code with it.
    """
    return Recipe(
        method=MethodSpec("diffusion_nft", {"draws": 4, "kl": 0.0}),
        policy=PolicySpec(model="shapes", dtype="bfloat16", steps=10, max_sequence_length=16, lora=LoraSpec(rank=32, alpha=64.0)),
        rewards=(RewardSpec("shapes:strict"), RewardSpec("shapes:soft")),
        data=DataSpec(prompts="shapes"),
        optim=OptimSpec(lr=1e-3, weight_decay=0.0, warmup=5),
        sizes=SizesSpec(prompts=8, group=12, slice=32, batch=96),
        evaluate=EvalSpec(
            every=10,
            quick=84,
            images=4,
            steps=20,
            guidance=1.0,
            rewards=("shapes:strict", "flowrl.shapes.judge:reward"),
            features="flowrl.shapes.judge:features",
        ),
        run=RunSpec(name="shapes", iterations=400, minutes=8.0),
    )
