"""What the papers and repositories of methods report, in numbers. Their claims: nothing here was measured by us."""

from __future__ import annotations

NUMBERS: dict[str, tuple[str, ...]] = {
    "flow_grpo": (
        "SD3.5-M: GenEval 0.63 -> 0.95 (5600 steps, by TempFlow-GRPO's account), text accuracy 0.59 -> 0.92",
        "SD3.5-M: PickScore 21.72 -> 23.31",
    ),
    "flow_grpo_fast": ("SD3.5-M, PickScore: two trained steps reach what all ten do, one step slightly less",),
    "grpo_guard": (
        "against Flow-GRPO, SD3.5-M: gold score on GenEval 0.84 -> 0.89, on text rendering 0.88 -> 0.99",
        "spread of the gradient's variance over steps 20x -> 2.5x",
    ),
    "flow_dppo": (
        "SD3.5-M, several rewards: GenEval2 48.1 (Flow-GRPO 39.9, Flow-CPS 44.6)",
        "FLUX.2-klein-9B: GenEval2 57.7 (Flow-GRPO 46.8); policy KL a quarter",
    ),
    "flow_noise": (
        "pi_0 by Flow-Noise: ManiSkill 38.4 -> 77.8, MetaWorld 50.8 -> 85.8, CALVIN 57.5 -> 59.9",
        "ReinFlow: reward of a pretrained flow policy +135 % in legged locomotion",
    ),
    "precise": ("SD3.5-M and FLUX.2-klein: 13.1 to 53.2 % less time to reach the best earlier sampler",),
    "longcat": ("GenRL, Wan2.1-1.3B, text in video: 0.30 after 1200 steps (Flow-GRPO 0.28 after 3000)",),
    "hicogen": ("HiCoPrompt: existence 0.7127 (Qwen-Image 0.6292), CLIP 0.3192, HPS-v2 0.3357",),
    "dance_grpo": (
        "FLUX.1-dev, HPS-v2.1: 200 iterations, 12 h on 16 H800",
        "Qwen-Image: HPS-v2.1 0.25 -> 0.33 in 200 iterations; HunyuanVideo: VideoAlign VQ +50 to 60 %",
    ),
    "mix_grpo": (
        "FLUX.1-dev: HPS-v2.1 0.313 -> 0.367, ImageReward 1.088 -> 1.629 (DanceGRPO 0.356, 1.436)",
        "about 150 s an iteration (DanceGRPO 291 s), 32 GPUs",
    ),
    "mix_grpo_flash": (
        "FLUX.1-dev: HPS-v2.1 0.358, ImageReward 1.528, 112 s an iteration, 32 GPUs",
        "frozen=True: HPS-v2.1 0.357, ImageReward 1.624, 83 s an iteration",
    ),
    "branch_grpo": (
        "FLUX.1-dev, 16 H200: HPS-v2.1 0.313 -> 0.363, 493 s an iteration (DanceGRPO 0.360, 698 s)",
        "depths pruned: HPS-v2.1 0.369, 314 s; Mix variant: 0.363, 148 s",
    ),
    "tree_rpo": (
        "FLUX: HPS-v2.1 +4.9 %, PickScore +5.91 %, ImageReward +8.66 % over the best before",
        "151 s an iteration (DanceGRPO 323, MixGRPO 240)",
    ),
    "tempflow_grpo": (
        "SD3.5-M: GenEval 0.97 at 3800 steps (Flow-GRPO 0.88 there), 0.95 at about 2000",
        "FLUX, HPS-v3: 80 steps for what took 300",
    ),
    "g2rpo": (
        "FLUX.1-dev, HPS-v2.1 as reward: 0.385 (DanceGRPO 0.353, MixGRPO 0.378), 16 H200",
        "with CLIP beside it: HPS-v2.1 0.376, CLIP 0.406 (MixGRPO 0.363, 0.399)",
    ),
    "flash_grpo": ("Wan2.1-1.3B, HPS-v3: about 6 times faster; 40 h on 8 GPUs",),
    "neighbor_grpo": ("FLUX, 32 H800: HPS-v2.1 0.366, ImageReward 1.640, 45.1 s an iteration (DanceGRPO 237.9)",),
    "adv_grpo": ("PickScore 22.78 (baseline 22.82), text accuracy 0.91; people prefer it in 70 to 85 %",),
    "gardo": (
        "SD3.5-M: GenEval 0.95 (2000 steps), diversity 24.95",
        "SD3.5-M: text accuracy 0.92 (600 steps), PickScore 22.41, HPS-v3 9.75",
    ),
    "parrot": ("SD1.5: mean of its rewards 0.3254 -> 0.3992 without its prompt expander",),
    "diffusion_nft": ("SD3.5-M without guidance: GenEval 0.24 -> 0.98 within 1000 steps; up to 25x the efficiency of Flow-GRPO",),
    "awm": ("SD3.5-M: 8x (GenEval) to 24x (text rendering) faster than Flow-GRPO",),
    "dgpo": ("about 20 to 30 times faster than Flow-GRPO",),
    "spo": ("language models, Qwen3-8B: maj@32 +3.4 points",),
    "reg_grpo": ("SEED-Bench-R1, 3B: +8.5, 10.1 and 8.6 points",),
    "srpo": ("FLUX.1-dev: realism and aesthetics more than 3x, under 10 minutes of training",),
}
"""method -> its headline numbers, as far as we have read them; a method that is not here gave none."""
