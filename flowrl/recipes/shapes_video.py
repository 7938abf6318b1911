"""The embedded video default: a tiny Wan on the world of moving shapes, minutes on a CPU."""

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


def shapes_video() -> Recipe:
    """DiffusionNFT on the embedded video model.

    The verifier is the reward on training captions: its strict verdict, plus its soft score for groups without a right video.
    Its strict verdict judges held-out captions; so do a second judge that shares no code with it, and the motion alone.
    """
    return Recipe(
        method=MethodSpec("diffusion_nft", {"draws": 4, "kl": 0.0}),
        policy=PolicySpec(
            model="shapes_video",
            dtype="float32",
            height=32,
            width=32,
            frames=9,
            steps=10,
            guidance=1.0,
            max_sequence_length=16,
            lora=LoraSpec(rank=32, alpha=64.0),
        ),
        rewards=(RewardSpec("shapes_video:strict"), RewardSpec("shapes_video:soft")),
        data=DataSpec(prompts="shapes_video"),
        optim=OptimSpec(lr=1.5e-3, weight_decay=0.0, warmup=5),
        sizes=SizesSpec(prompts=8, group=12, slice=32, batch=96),
        evaluate=EvalSpec(
            every=10,
            quick=48,
            images=4,
            steps=20,
            guidance=1.0,
            rewards=("shapes_video:strict", "flowrl.shapes_video.judge:reward", "flowrl.shapes_video.reward:motion"),
            features="flowrl.shapes_video.judge:features",
            frames=None,
        ),
        run=RunSpec(name="shapes_video", iterations=400, minutes=10.0),
    )
