"""Plants one-line faults, one at a time, in a copy of the package; each must turn one of the tests named beside it red.

python tests/mutants.py [WORD ...]    all rows, or those whose file or fault holds one of the words; exit 1 if a fault survives

A row whose old text is not found exactly once is an error: the code has moved on, and the row must follow.
The slow part of a test run is importing torch, so it is imported once here and every fault runs in a fork.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import mutants_models
import pytest

ROOT = Path(__file__).parent.parent
COPIED = ("flowrl", "samplers", "rewards", "kernels", "assets", "tests", "pyproject.toml")
LIMIT = 600  # seconds a fault may take, on a machine that does other things too


class Mutant(NamedTuple):
    """One fault. tests: files or node ids under tests/ that should notice it, separated by spaces."""

    fault: str
    file: str
    old: str
    new: str
    tests: str


RATES, BUDGETS, CHOSEN = "flowrl/selection/history.py", "flowrl/selection/budgets.py", "test_selection.py"
LAWS, STEP, WALK, SOLVERS = "samplers/laws.py", "kernels/ops/step.py", "samplers/walk.py", "samplers/solvers.py"
RATIO, CLIP, NFT = (f"flowrl/objectives/{name}.py" for name in ("ratio", "clip", "nft"))
SURROGATES, GROUPWISE, POOLS, NEIGHBOR = (
    f"flowrl/objectives/{name}.py" for name in ("surrogates", "groupwise", "pools", "neighbor")
)
RENOISE, AWM, DPO, DGPO, MATCHING = (
    f"flowrl/objectives/{name}.py" for name in ("renoise", "awm", "preference", "dgpo", "matching")
)
GROUP, TREES, CREDIT, WRAPPERS, PORTED, SEVERAL, CONTROL, SELECTION, PREFERENCE = (
    f"flowrl/advantage/{name}.py"
    for name in ("group", "trees", "credit", "wrappers", "ported", "several", "control", "selection", "preference")
)
OCR, MOTION, READ = "rewards/rules/ocr.py", "rewards/rules/motion.py", "test_rewards_ocr.py"
WORKED, MOVES = "test_the_default_has_its_hand_worked_scores", "test_rewards_motion.py"
MUTANTS = (
    # samplers
    Mutant("drift with the wrong sign", LAWS, "sigma_next - variance / (2", "sigma_next + variance / (2", "test_laws.py"),
    Mutant("std without sqrt(delta)", LAWS, "g2 * (sigma - sigma_next))", "g2)", "test_laws.py"),
    Mutant("guard never used", LAWS, "sigma >= 1", "sigma > 1", "test_laws.py"),
    Mutant("guard used below 1", LAWS, "sigma >= 1", "sigma >= 0.5", "test_laws.py"),
    Mutant(
        "eta not squared",
        LAWS,
        "_number(eta, sigma) ** 2 * (sigma - sigma_next)",
        "_number(eta, sigma) * (sigma - sigma_next)",
        "test_laws.py",
    ),
    Mutant("CPS: sine for cosine", LAWS, "angle.cos()", "angle.sin()", "test_laws.py"),
    Mutant("x0 moved the wrong way", "samplers/paths.py", "return x - sigma * u", "return x + sigma * u", "test_laws.py"),
    Mutant(
        "precise: eta not squared", LAWS, "alpha) ** (_number(eta, sigma) ** 2))", "alpha) ** _number(eta, sigma))", "test_laws.py"
    ),
    Mutant(
        "DDIM: e^-h for e^-2h", LAWS, "_decay(sigma, sigma_next, alpha) ** 2)", "_decay(sigma, sigma_next, alpha))", "test_laws.py"
    ),
    Mutant(
        "the new noise is what should be kept", LAWS, "sigma_next * kept.sqrt()", "sigma_next * (1 - kept).sqrt()", "test_laws.py"
    ),
    Mutant("Wan: level of the step's end", LAWS, "(guard - low) * sigma", "(guard - low) * sigma_next", "test_golden_laws.py"),
    Mutant("SAGE without its correction", LAWS, ".log() - (sigma - sigma_next)", ".log()", "test_golden_laws.py test_laws.py"),
    Mutant("cap of the variance, not of the std", LAWS, "_number(cap, sigma) ** 2", "_number(cap, sigma)", "test_laws.py"),
    Mutant("learned std at twice its logarithm", LAWS, "(raw.tanh() + 1) / 2", "(raw.tanh() + 1)", "test_laws.py"),
    Mutant(
        "v-prediction with its signs swapped",
        "samplers/paths.py",
        "self.alpha(sigma) * x1 - sigma * x0",
        "self.alpha(sigma) * x1 + sigma * x0",
        "test_laws.py",
    ),
    Mutant(
        "epsilon not divided by alpha",
        "samplers/paths.py",
        "return (x - sigma * u) / self.alpha(sigma)",
        "return x - sigma * u",
        "test_laws.py",
    ),
    Mutant("tail one level short", "samplers/schedules.py", "sigmas[: last + 1], tail", "sigmas[:last], tail", "test_laws.py"),
    Mutant("Heun takes the first slope twice", SOLVERS, "(begin + end)", "(begin + begin)", "test_laws.py"),
    Mutant("DPM: second order everywhere", "samplers/multistep.py", "p2 = p1 / 2 if", "p2 = p1 if", "test_laws.py"),
    Mutant(
        "DPM: the last step is of full order",
        SOLVERS,
        "self.order, at.left + 1)",
        "self.order, self.order)",
        "test_golden_solvers.py",
    ),
    Mutant(
        "history of a stranger",
        WALK,
        "[(level[at], x0[at]) for level, x0 in front.past]",
        "front.past",
        "test_golden_solvers.py test_rollout.py",
    ),
    Mutant("siblings share all their noise", WALK, "+ own * z", "+ 0 * z", "test_rollout.py test_golden_losses.py"),
    Mutant("shared noise of another prompt", WALK, "self.noise(slot, -2 -", "self.noise(0, -2 -", "test_rollout.py"),
    Mutant("quiet calls ignore their limit", WALK, "(False, self.batch)", "(False, None)", "test_rollout.py"),
    Mutant(
        "the std of learned noise is fixed",
        WALK,
        "self.plan.learned.std(raw[at])",
        "self.plan.learned.std(0 * raw[at])",
        "test_learned_noise.py",
    ),
    Mutant(
        "learned ratio with one std",
        RATIO,
        "batch.learned.std(u[:, 1])) for u in (now, old)",
        "batch.learned.std(now[:, 1])) for u in (now, old)",
        "test_learned_noise.py",
    ),
    Mutant("merged step with its own guard", "samplers/builders.py", "guard=grid[1])", "guard=float(plan.guard))", "test_plan.py"),
    Mutant("joined plans mix up their parents", "samplers/builders.py", "p.parent + k, -1", "p.parent, -1", "test_plan.py"),
    Mutant("softmax over grandchildren", TREES, "count[:, nodes] = known.double()", "pass", "test_golden_losses.py"),
    Mutant("granularities averaged", TREES, "label >> bit & 1", "label >= 0", "test_golden_losses.py"),
    Mutant("best of n: only the best", SELECTION, "(rank < n // 2) |", "(rank < 0) |", "test_golden_losses.py"),
    Mutant(
        "guard without its drift", CLIP, "(log_ratio + (drift.mean() if compat else drift))", "log_ratio", "test_golden_losses.py"
    ),
    Mutant(
        "guarded ratio without its std",
        CLIP,
        "(batch.b / batch.s).to(now)",
        "(batch.b / batch.s**2).to(now)",
        "test_golden_losses.py",
    ),
    Mutant(
        "DPPO drops what comes back",
        "flowrl/objectives/dppo.py",
        "(log_ratio > 0) & (advantage > 0)",
        "(log_ratio > 0) & (advantage < 0)",
        "test_golden_losses.py",
    ),
    Mutant("step weights forgotten", "flowrl/update.py", "1.0 if q.share is None else q.share", "1.0", "test_objectives.py"),
    Mutant("pruned depths trained on", WRAPPERS, "weight=credit.weight * keep", "weight=credit.weight", "test_advantage.py"),
    Mutant("smallest level shifted once", "samplers/schedules.py", "float(smallest)", "1 / train_steps", "test_golden.py"),
    Mutant(
        "window one step short", "samplers/windows.py", "min(start + size, steps)", "min(start + size - 1, steps)", "test_laws.py"
    ),
    Mutant("window stands one iteration longer", "samplers/windows.py", "if stood >= _dwell", "if stood > _dwell", "test_laws.py"),
    Mutant("noise ignores the node", "samplers/noise.py", "slot, node) + purpose", "slot, 0) + purpose", "test_noise.py"),
    Mutant("noise ignores the slot", "samplers/noise.py", "slot, node) + purpose", "0, node) + purpose", "test_noise.py"),
    Mutant(
        "noise ignores the iteration",
        "samplers/noise.py",
        "seed, iteration, slot, node) + purpose",
        "seed, 0, slot, node) + purpose",
        "test_noise.py",
    ),
    Mutant("noise ignores its purpose", "samplers/noise.py", " + purpose.encode()", "", "test_noise.py"),
    Mutant("quiet twins allowed", "samplers/plan.py", "if len(set(quiet)) < len(quiet):", "if False:", "test_plan.py"),
    Mutant("std 0 allowed", "samplers/plan.py", "if bad.any():", "if False:", "test_plan.py"),
    Mutant("comb without its granularity", "samplers/builders.py", "[i + 2 :: stride]", "[i + 2 :: 1]", "test_plan.py"),
    Mutant("key blind to the law", "samplers/plan.py", ", *self.coefficients(self.edges))", ")", "test_plan.py"),
    Mutant(
        "state scored before it is rounded",
        "samplers/walk.py",
        "log_density(x, step(",
        "log_density(step(front.x[at], u[at], a, b, s, z), step(",
        "test_rollout.py",
    ),
    Mutant("state not rounded", "samplers/walk.py", "x.to(self.dtype).float()", "x.float()", "test_rollout.py"),
    Mutant(
        "children ask for their own prediction", "samplers/walk.py", "sorted(set(parents))", "sorted(parents)", "test_rollout.py"
    ),
    Mutant(
        "noise of the prompt's place, not its slot",
        "samplers/walk.py",
        "z = self.noise(slot, node)",
        "z = self.noise(prompt, node)",
        "test_rollout.py",
    ),
    Mutant("recorded calls ignore the slice", "samplers/walk.py", "(True, self.slice)", "(True, None)", "test_rollout.py"),
    Mutant("density lets gradients into x'", "samplers/density.py", "x_next.detach()", "x_next", "test_step.py"),
    Mutant(
        "KL without its half",
        "samplers/density.py",
        "(mean - mean_ref) ** 2 / (2 * _per_row",
        "(mean - mean_ref) ** 2 / (_per_row",
        "test_step.py",
    ),
    # kernels
    Mutant("noise subtracted", STEP, "mean + _rows(s, x) * z", "mean - _rows(s, x) * z", "test_step.py"),
    Mutant("normaliser with the wrong sign", STEP, "- s.log()", "+ s.log()", "test_step.py"),
    Mutant("ratio about the new mean only", STEP, "(x_next - mean_old)", "(x_next - mean)", "test_step.py"),
    Mutant("ratio detached", STEP, "product = (u - u_old)", "product = (u.detach() - u_old)", "test_step.py"),
    Mutant(
        "rows reduced together",
        STEP,
        "torch.stack([row.mean() for row in x])",
        "x.flatten(1).double().mean(0).mean().expand(len(x)).to(x)",
        "test_step.py",
    ),
    # advantage
    Mutant("ddof ignored", GROUP, "square / (count - ddof)", "square / (count)", "test_advantage.py"),
    Mutant(
        "statistics in float32", GROUP, "torch.where(valid, r, 0).double()", "torch.where(valid, r, 0).float()", "test_advantage.py"
    ),
    Mutant("global std of the group", GROUP, "(0, 1), ddof)", "(1,), ddof)", "test_advantage.py"),
    Mutant("equal rewards over rounding", GROUP, "mean.clamp(low, high)", "mean", "test_estimators.py"),
    Mutant(
        "invalid leaves counted as 0", TREES, "= r, valid.double()", "= r, torch.ones_like(valid).double()", "test_advantage.py"
    ),
    Mutant("quiet edges are rivals", "samplers/plan.py", "self.noisy.double(), label", "label", "test_advantage.py"),
    Mutant(
        "one failed reward is forgiven", CREDIT, "for name in counted]).all(0)", "for name in counted]).any(0)", "test_advantage.py"
    ),
    Mutant(
        "dropped edges keep their weight", CREDIT, "torch.isfinite(a).float()", "torch.ones_like(a).float()", "test_advantage.py"
    ),
    Mutant(
        "a gate's reward is added", CREDIT, "outcome.weights.items() if factor}", "outcome.weights.items()}", "test_compositions.py"
    ),
    Mutant("the median over nothing", PORTED, "if not compat:\n", "if False:\n", "test_estimators.py"),
    Mutant(
        "the front of the beaten", SEVERAL, "(no_worse & better).any(0)", "(no_worse & better).any(1)", "test_golden_advantage.py"
    ),
    Mutant(
        "GARDO holds the rest",
        CONTROL,
        "kl_weight=credit.kl_weight * held",
        "kl_weight=credit.kl_weight * ~held",
        "test_compositions.py",
    ),
    Mutant(
        "peers too few compete", CREDIT, "int(mine.sum()) >= self.least", "int(mine.sum()) > self.least", "test_compositions.py"
    ),
    Mutant("a tie is a win", PREFERENCE, "gap > margin", "gap >= -margin", "test_estimators.py"),
    Mutant("a step's gain without its start", TREES, "done - done[:, plan.parent.clamp(min=0)]", "done", "test_compositions.py"),
    Mutant("KL pushed the wrong way", CONTROL, "(smooth - self.target)", "(self.target - smooth)", "test_compositions.py"),
    # objectives
    Mutant("clip on the wrong side", RATIO, "torch.maximum(-advantage", "torch.minimum(-advantage", "test_objectives.py"),
    Mutant("dual clip for good samples", RATIO, "torch.where(advantage < 0", "torch.where(advantage > 0", "test_objectives.py"),
    Mutant(
        "prediction detached",
        RATIO,
        'now = u["current"][batch.row]',
        'now = u["current"].detach()[batch.row]',
        "test_objectives.py",
    ),
    Mutant("KL with b, not b^2", RATIO, "(b**2 / (2 * s**2))", "(b / (2 * s**2))", "test_objectives.py"),
    Mutant(
        "replay in another order", RATIO, "torch.arange(i, j) for i, j", "torch.arange(i, j).flip(0) for i, j", "test_objectives.py"
    ),
    Mutant("floor of the clip removed", RATIO, "if min(low, high) < floor:", "if False:", "test_objectives.py"),
    Mutant(
        "KL without its weight",
        RATIO,
        "batch.kl_scale * (batch.kl_weight * kl)",
        "batch.kl_scale * (batch.weight * kl)",
        "test_objectives.py",
    ),
    Mutant(
        "the scale of a KL multiplies nothing",
        RATIO,
        "policy + beta * batch.kl_scale * (batch",
        "policy + beta * (batch",
        "test_surrogates.py",
    ),
    Mutant("forward KL of the other direction", RATIO, "log_x = -log_ratio", "log_x = log_ratio", "test_surrogates.py"),
    Mutant("k2 without its half", RATIO, "return d**2 / 2", "return d**2", "test_surrogates.py"),
    Mutant("no clip of 1 and more", RATIO, "if low < 1 else -math.inf", "if low < 99 else -math.inf", "test_surrogates.py"),
    Mutant(
        "guard divides by the wrong one",
        CLIP,
        'batch.delta if self.by == "step"',
        'batch.delta if self.by == "slope"',
        "test_surrogates.py",
    ),
    Mutant(
        "the KL's share of a step left out",
        "flowrl/update.py",
        "q.kl_weight * kl * kl_share",
        "q.kl_weight * kl",
        "test_surrogates.py",
    ),
    Mutant("LongCat's KL not squared", "flowrl/methods/steps.py", "scale(steps) ** 2", "scale(steps)", "test_surrogates.py"),
    Mutant(
        "cispo's weight carries gradient",
        SURROGATES,
        "log_ratio.detach().exp().clamp(1 - low",
        "log_ratio.exp().clamp(1 - low",
        "test_surrogates.py",
    ),
    Mutant(
        "sapo's temperatures swapped",
        SURROGATES,
        "torch.where(advantage > 0, up, down)",
        "torch.where(advantage < 0, up, down)",
        "test_surrogates.py",
    ),
    Mutant(
        "densities pass for probabilities", SURROGATES, "(probability > 1).any()", "(probability > 9).any()", "test_surrogates.py"
    ),
    Mutant("equal ratios stay equal", GROUPWISE, "alike = variance <= 0", "alike = variance < -1", "test_surrogates.py"),
    Mutant("contrast with nothing", GROUPWISE, "if len(up) and len(down):", "if len(up) or len(down):", "test_surrogates.py"),
    Mutant("a hinge that pulls below its limit", GROUPWISE, ".clamp(min=0) * kl", " * kl", "test_surrogates.py"),
    Mutant("masked steps in the mean of a pool", POOLS, "else counted.to(values)", "else 1 + 0 * values", "test_surrogates.py"),
    Mutant(
        "one trajectory of all prompts",
        POOLS,
        "of(batch.group, batch.plan.ends",
        "of(0 * batch.group, batch.plan.ends",
        "test_surrogates.py",
    ),
    Mutant(
        "the scale of distances carries gradient",
        NEIGHBOR,
        "mean_of(distance.detach(), pool)",
        "mean_of(distance, pool)",
        "test_surrogates.py",
    ),
    Mutant(
        "gradients given to other slices",
        "flowrl/replay.py",
        "grads = leaf.grad[first:].split(",
        "grads = leaf.grad[first:].flip(0).split(",
        "test_coupled.py",
    ),
    # the table of all methods
    Mutant(
        "GARDO divides by a std",
        "flowrl/methods/rewards.py",
        "credit = advantage.Composed(advantage.center, zero_sum=False)",
        "credit = advantage.Group()",
        "test_method_promises.py::test_the_unit_of_the_reward_changes_no_credit_where_that_is_promised",
    ),
    Mutant(
        "GRPO-Guard is Flow-GRPO",
        "flowrl/methods/flow_grpo.py",
        "objectives.guard(clip, beta=beta)",
        "objectives.clip(clip, beta=beta)",
        "test_method_promises.py::test_plan_and_gradient_of_any_two_methods_differ_but_for_aliases",
    ),
    Mutant("G2RPO compares one with nothing", TREES, 'ddof + 1, "this advantage")', '0, "this advantage")', "test_refusals.py"),
    Mutant("NFT prefers what is bad", NFT, "(0.5 + advantage /", "(0.5 - advantage /", "test_golden.py"),
    Mutant("NFT's divisor carries gradient", NFT, "error.detach().abs()", "error.abs()", "test_golden.py"),
    Mutant("one noise for all draws of a leaf", RENOISE, "else leaf * draws + draw,", "else leaf * draws,", "test_objectives.py"),
    Mutant(
        "pairs with noises of their own",
        RENOISE,
        "key=draw if shared else",
        "key=leaf if shared else",
        "test_forward.py::test_the_leaves_of_a_prompt_share_noise_and_level",
    ),
    Mutant(
        "NFT's modes swapped",
        NFT,
        "advantage.clamp(max=0)",
        "advantage.clamp(min=0)",
        "test_golden_forward.py::test_the_probability_of_a_leaf_is_diffusionnfts",
    ),
    Mutant(
        "AWM: the error, not its root",
        AWM,
        "(error + 1e-10) ** power",
        "(error + 1e-10)",
        "test_golden_forward.py::test_awm_on_policy_is_its_formula",
    ),
    Mutant(
        "AWM: first step kept",
        AWM,
        "PUBLISHED = Grid(1, 0.9)",
        "PUBLISHED = Grid(0, 0.9)",
        "test_forward.py::test_awm_asks_at_the_levels_it_was_published_with",
    ),
    Mutant(
        "AWM: sums for means over draws",
        AWM,
        "ratio) / draws",
        "ratio)",
        "test_forward.py::test_awms_two_orders_agree_on_policy_and_part_off_it",
    ),
    Mutant(
        "DPO prefers the loser",
        DPO,
        "gain[winner] - gain[loser]",
        "gain[loser] - gain[winner]",
        "test_golden_forward.py::test_dpo_is_its_formula",
    ),
    Mutant(
        "DPO without its half",
        DPO,
        "-self.beta / 2 * margin",
        "-self.beta * margin",
        "test_golden_forward.py::test_dpo_is_its_formula",
    ),
    Mutant(
        "pairs over draws",
        DPO,
        "setdefault((g, d)",
        "setdefault((g, 0)",
        "test_forward.py::test_pairs_join_the_best_with_the_worst_and_leave_the_rest",
    ),
    Mutant(
        "DGPO out of balance",
        DGPO,
        "(half / above)[group]",
        "(half / half)[group]",
        "test_forward.py::test_dgpos_sides_are_balanced_and_its_partition_function_cancels",
    ),
    Mutant(
        "DGPO stops what has not moved",
        DGPO,
        "(old - error).detach()",
        "(error - old).detach()",
        "test_forward.py::test_dgpo_stops_leaves_that_moved_far_enough",
    ),
    Mutant(
        "matching trains on all leaves",
        MATCHING,
        "if self.beta else credit.weight > 0",
        "if self.beta else credit.weight >= 0",
        "test_forward.py::test_only_leaves_that_take_part_are_asked",
    ),
    Mutant(
        "a mix with one denominator",
        MATCHING,
        "replace(batch, weight=batch.kl_weight)",
        "batch",
        "test_forward.py::test_a_mix_is_the_sum_of_both_means",
    ),
    Mutant(
        "the best of a flat prompt",
        "flowrl/advantage/choice.py",
        "(chosen & uneven).float(), chosen & uneven",
        "chosen.float(), chosen",
        "test_forward.py::test_choices_of_leaves",
    ),
    # weights, update, loop
    Mutant(
        "weight set not restored",
        "flowrl/weights.py",
        "            finally:\n                self._swap(name)",
        "            finally:\n                pass",
        "test_objectives.py",
    ),
    Mutant("EMA decay swapped", "flowrl/weights.py", "p.detach(), 1 - keep", "p.detach(), keep", "test_objectives.py"),
    Mutant("first ratio not checked", "flowrl/update.py", "if exact and not steps", "if False and not steps", "test_objectives.py"),
    Mutant(
        "all optimizer steps share a denominator",
        "flowrl/update.py",
        "part_of[rows] = part[block]",
        "part_of[rows] = 0",
        "test_objectives.py",
    ),
    Mutant(
        "coupled gradient dropped", "flowrl/replay.py", ".backward(grad)", ".backward(torch.ones_like(grad))", "test_objectives.py"
    ),
    Mutant("not anchored after halving", "flowrl/update.py", "q = shrunk(q)", "pass", "test_objectives.py"),
    Mutant(
        "resume without the optimizer",
        "flowrl/loop.py",
        '        optimizers.load(self.optimizer, state["optimizer"]["state"])\n',
        "",
        "test_methods.py",
    ),
    Mutant(
        "every iteration has the same noise",
        "flowrl/loop.py",
        "Source(parts.recipe.run.seed, session.iteration)",
        "Source(parts.recipe.run.seed, 0)",
        "test_methods.py",
    ),
    Mutant(
        "seed of the run ignored",
        "flowrl/loop.py",
        "Source(parts.recipe.run.seed, session.iteration)",
        "Source(0, session.iteration)",
        "test_methods.py",
    ),
    Mutant("held-out noise of the training kind", "flowrl/heldout.py", 'world, "heldout"', 'world, "rollout"', "test_noise.py"),
    Mutant("samples from the wrong weights", "flowrl/methods/nft.py", 'sample_from="old",', "", "test_methods.py"),
    Mutant(
        "saves the last weights for the average",
        "flowrl/methods/nft.py",
        'export="average" if average else "current",',
        "",
        "test_methods.py",
    ),
    # models, export, data, rewards, checkpoint
    Mutant(
        "guidance branches swapped",
        "flowrl/models/policy.py",
        "negative, positive = both.chunk(2)",
        "positive, negative = both.chunk(2)",
        "test_models.py test_sd3_parity.py",
    ),
    Mutant("VAE shift dropped", "flowrl/models/sd3.py", " + vae.config.shift_factor", "", "test_sd3_parity.py"),
    Mutant(
        "alpha dropped at export",
        "flowrl/export/diffusers.py",
        'f"{name}_lora_adapter_metadata": dict(config)}',
        'f"{name}_lora_adapter_metadata": None}',
        "test_export.py",
    ),
    Mutant("held-out prompts stay in training", "flowrl/data.py", "if text not in held]", "if True]", "test_data.py"),
    Mutant("prompt order ignores the seed", "flowrl/data.py", "{seed}/{epoch}", "{epoch}", "test_data.py"),
    Mutant("number of scores not checked", "rewards/lift.py", "if len(numbers) != count:", "if False:", "test_rewards.py"),
    Mutant(
        "what could not be scored is 0", "rewards/lift.py", "        return math.nan\n", "        return 0.0\n", "test_rewards.py"
    ),
    Mutant(
        "total forgets what is invalid", "rewards/combine.py", "valid = valid & scores", "valid = valid | scores", "test_rewards.py"
    ),
    Mutant("checkpoint's hash not checked", "flowrl/checkpoint.py", '!= said["sha256"]', '== ""', "test_checkpoint.py"),
    Mutant(
        "an invalid image counts as a failure",
        RATES,
        "got.rewards[got.valid])\n                a, b",
        "got.rewards.nan_to_num(0))\n                a, b",
        f"{CHOSEN}::test_invalid_rewards_do_not_count",
    ),
    Mutant(
        "a rate never forgets",
        RATES,
        "[self.keep * a + ",
        "[a + ",
        f"{CHOSEN}::test_a_rate_forgets_and_is_shrunk_by_one_image_towards_the_rate_of_all",
    ),
    Mutant(
        "Knapsack: value of easy prompts",
        BUDGETS,
        "* p * (1 - p) ** 2",
        "* p**2 * (1 - p)",
        f"{CHOSEN}::test_knapsack_gives_more_to_hard_prompts_than_to_solved_ones",
    ),
    Mutant(
        "Knapsack: the last prompt's units unspent",
        BUDGETS,
        "        left -= int(out[row])\n",
        "",
        f"{CHOSEN}::test_knapsack_reaches_the_published_optimum",
    ),
    Mutant("XRPO: interval without its root", BUDGETS, "* std / n.sqrt()", "* std / n", f"{CHOSEN}::test_half_width_is_students"),
    Mutant(
        "bandit: a category keeps its first value",
        "flowrl/selection/bandits.py",
        "rate * gain + (1 - rate) * value)",
        "value)",
        f"{CHOSEN}::test_the_bandit_has_the_published_values_and_chances",
    ),
    Mutant(
        "draws ignore the weights",
        "flowrl/selection/draws.py",
        "noise, len(rounds))) / weight",
        "noise, len(rounds)))",
        f"{CHOSEN}::test_draws_follow_the_weights",
    ),
    Mutant(
        "slots are told what others earned",
        "flowrl/loop.py",
        "zip(slots, got, strict=True)",
        "zip(slots, got[::-1], strict=True)",
        f"{CHOSEN}::test_every_slot_is_told_what_its_own_images_earned",
    ),
    Mutant(
        "groups of a selection ignored",
        "flowrl/loop.py",
        "parts.sized(int(g)) for g",
        "parts.method for g",
        f"{CHOSEN}::test_every_slot_is_told_what_its_own_images_earned",
    ),
    # inference
    Mutant(
        "rlg: base and tuned swapped",
        "flowrl/inference/guidance.py",
        "_wide(u_base), _wide(u_tuned), w",
        "_wide(u_tuned), _wide(u_base), w",
        "test_golden_inference.py",
    ),
    Mutant(
        "rlg: steps counted on over generations",
        "flowrl/inference/guidance.py",
        "            seen.clear()",
        "            pass",
        "test_inference.py",
    ),
    Mutant(
        "best of n: a missing score wins over -inf",
        "flowrl/inference/best.py",
        "torch.where(missing.gather(-1, at[..., None])[..., 0], (~missing).long().argmax(-1), at)",
        "at",
        "test_inference.py",
    ),
    Mutant(
        "best of n: a missing score is the best",
        "flowrl/inference/best.py",
        "values.masked_fill(missing, -math.inf).argmax(-1)",
        "values.argmax(-1)",
        "test_inference.py",
    ),
    Mutant(
        "svdd: the value sees the noisy state",
        "flowrl/inference/lookahead.py",
        "clean = path.x0(tried, answers, sigmas[i + 1].to(x))",
        "clean = tried",
        "test_inference.py",
    ),
    Mutant(
        "svdd: the answer of another candidate",
        "flowrl/inference/lookahead.py",
        "x, u = tried[kept], answers[kept]",
        "x, u = tried[kept], answers[slots]",
        "test_inference.py",
    ),
    Mutant(
        "rankings: the unlisted are forgotten",
        "flowrl/inference/ranking.py",
        "-float(k)",
        "0.0",
        "test_golden_inference.py test_inference.py",
    ),
    Mutant(
        "rankings: no new average after a move",
        "flowrl/inference/ranking.py",
        "best=first, mean=None, count=0",
        "best=first",
        "test_inference.py",
    ),
    Mutant(
        "sample: the seed's own image is not the first", "flowrl/choice.py", "seed if i == 0 else noise", "noise", "test_cli.py"
    ),
    # direct reward gradients
    Mutant(
        "a step without training keeps its graph",
        "flowrl/direct/travel.py",
        "torch.set_grad_enabled(graph and trained)",
        "torch.set_grad_enabled(graph)",
        "test_golden_direct.py",
    ),
    Mutant(
        "the network's input keeps its graph", "flowrl/direct/travel.py", "x.detach(), sigma", "x, sigma", "test_golden_direct.py"
    ),
    Mutant(
        "SRPO recovers with the start's noise",
        "flowrl/direct/schemes.py",
        "return (x - near * x1) / path.alpha(near)",
        "return (x - far * x1) / path.alpha(far)",
        "test_golden_direct.py",
    ),
    Mutant(
        "kappa of the wrong place",
        "flowrl/direct/schemes.py",
        "[m - place - reach]",
        "[m - place]",
        "test_golden_direct.py",
    ),
    Mutant(
        "images without a score count in the mean",
        "flowrl/direct/loop.py",
        "p.grad.mul_(scale)",
        "p.grad.mul_(1.0)",
        "test_direct.py",
    ),
    Mutant(
        "slope of an image without a score is kept",
        "flowrl/direct/loop.py",
        "view(-1, *[1] * (found.ndim - 1)), found, 0)",
        "view(-1, *[1] * (found.ndim - 1)), found, found)",
        "test_direct.py",
    ),
    Mutant(
        "image encoder ends without its norm",
        "rewards/networks/imagereward.py",
        '("norm.", "post_layernorm."),',
        '("norm.", "norm."),',
        "test_rewards_networks_imagereward.py::test_score_is_the_ladder_of_the_first_token_normalised",
    ),
    Mutant(
        "text encoder masks the words to come",
        "rewards/networks/imagereward.py",
        "encoder_hidden_states=seen, is_decoder=False)",
        "encoder_hidden_states=seen, is_decoder=True)",
        "test_rewards_networks_imagereward.py::test_score_is_the_ladder_of_the_first_token_normalised",
    ),
    Mutant(
        "head read one token late",
        "rewards/networks/qwen.py",
        "    return here.int().argmax(-1)\n",
        "    return here.int().argmax(-1) + 1\n",
        "test_rewards_networks_qwen.py::test_hpsv3_reads_the_first_number_at_its_token_as_the_authors_do",
    ),
    Mutant(
        "low-rank update not scaled",
        "rewards/networks/qwen.py",
        "weight.float() + scale * (up",
        "weight.float() + (up",
        "test_rewards_networks_qwen.py::test_low_rank_updates_are_added_as_peft_adds_them",
    ),
    Mutant(
        "LPIPS weight without its root",
        "rewards/networks/stages.py",
        "(unit * (weight / maps[0, 0].numel()).sqrt())",
        "(unit * weight / maps[0, 0].numel() ** 0.5)",
        "test_rewards_networks_perceptual.py::test_lpips_is_the_weighted_distance_of_unit_features",
    ),
    Mutant(
        "a gate sees the best frame",
        "rewards/networks/nsfw.py",
        ".amin(1).cpu()",
        ".amax(1).cpu()",
        "test_rewards_networks_gates.py::test_the_gate_is_the_probability_of_the_safe_class",
    ),
    Mutant(
        "float images are not normalised for CLIP",
        "rewards/contrastive/prepare.py",
        "return self._normalised(nn.functional.pad(images.clamp(0, 1), around, value=self.fill / 255))",
        "return nn.functional.pad(images.clamp(0, 1), around, value=self.fill / 255)",
        "test_rewards_clip.py",
    ),
    Mutant("further text is free", OCR, "max(length, shown), float", "length, float", f"{READ}::{WORKED}"),
    Mutant(
        "an unread image has 0",
        OCR,
        "failures.append(error)\n",
        "failures.append(error)\n                marks[index] = 0\n",
        f"{READ}::test_an_image_the_engine_fails_on_has_no_score_and_the_others_keep_theirs",
    ),
    Mutant(
        "flow_grpo: a frame has the rule of images",
        OCR,
        "if text in read and not video",
        "if text in read",
        f"{READ}::test_flow_grpo_has_its_hand_worked_scores",
    ),
    Mutant(
        "flow_grpo: frames without the text count",
        OCR,
        "values[values > 0].mean()",
        "values.mean()",
        f"{READ}::test_flow_grpo_scores_a_video_by_the_fourth_frames_that_have_something",
    ),
    Mutant("illegible lines are read", OCR, "line.confidence >= LEGIBLE", "line.confidence > 0", f"{READ}::{WORKED}"),
    Mutant(
        "a replacement costs two",
        "rewards/rules/edits.py",
        "(x != y)",
        "2 * (x != y)",
        f"{READ}::test_levenshtein_is_the_least_number_of_edits_and_a_metric",
    ),
    Mutant(
        "apostrophes are quotes",
        "rewards/rules/quotes.py",
        "|['’](?=\\w))+",
        ")+",
        f"{READ}::test_the_texts_asked_for_stand_between_quotes",
    ),
    Mutant(
        "columns are read across",
        "rewards/rules/reading.py",
        "(_rows(extents), by_block)",
        "(_rows(extents), _rows(extents))",
        f"{READ}::test_lines_are_read_by_rows_and_by_blocks",
    ),
    Mutant("motion need not lead back", MOTION, "close & alike & inside", "alike & inside", MOVES),
    Mutant("motion need not keep its colour", MOTION, "close & alike & inside", "close & inside", MOVES),
    Mutant("a pan is motion", MOTION, "forth - _camera(forth, grid, verified)", "forth", MOVES),
    Mutant(
        "unsigned differences wrap",
        "rewards/rules/flicker.py",
        "a.astype(np.int16) - b",
        "a - b",
        "test_rewards_motion.py::test_flicker_is_the_mean_difference_of_neighbours",
    ),
    Mutant(
        "GenEval's half is of what the margin leaves",
        "rewards/geneval/rules.py",
        "(apart / np.linalg.norm(offset))",
        "(apart / np.linalg.norm(apart))",
        "test_geneval.py::test_relations_at_the_margin",
    ),
    Mutant(
        "GenEval's threshold is enough",
        "rewards/geneval/objects.py",
        "found.scores > threshold",
        "found.scores >= threshold",
        "test_geneval.py::test_hand_worked_cases_are_judged_as_by_hand",
    ),
    Mutant(
        "GenEval's padding is part of a picture",
        "rewards/geneval/mask2former.py",
        "[None], frame.padded, mode",
        "[None], frame.inner, mode",
        "test_geneval_detectors.py::test_a_planted_mask_comes_back_in_the_pixels_of_the_picture",
    ),
    Mutant(
        "GenEval's unread metadata is judged",
        "rewards/geneval/reward.py",
        "np.full((len(tasks), frames.shape[1], 4), np.nan)",
        "np.zeros((len(tasks), frames.shape[1], 4))",
        "test_geneval_reward.py::test_what_cannot_be_judged_is_never_scored_and_told_of_once",
    ),
    # adversarial rewards
    Mutant(
        "tokens are scored as they come",
        "rewards/adversarial/discriminator.py",
        'state["iteration"]).unit()',
        'state["iteration"])',
        "test_rewards_adversarial.py::test_the_score_is_the_formula",
    ),
    Mutant(
        "patches are drawn for each image anew",
        "rewards/adversarial/references.py",
        '"patches", seed, iteration, key)',
        '"patches", seed, 0, key)',
        "test_rewards_adversarial.py::test_patches_are_those_of_the_prompt_and_the_iteration",
    ),
    Mutant(
        "the policy learns from an untrained discriminator",
        "rewards/adversarial/discriminator.py",
        "Decision(True, True) if at",
        "Decision(True, False) if at",
        "test_rewards_adversarial.py::test_a_discriminator_learns_to_tell_two_families",
    ),
    Mutant(
        "nothing is remembered for the discriminator",
        "rewards/adversarial/discriminator.py",
        "torch.cat([fake.whole, old.whole])",
        "torch.cat([fake.whole, fake.whole])",
        "test_rewards_adversarial.py::test_the_memory_is_learnt_from",
    ),
    Mutant(
        "the pair trains all layers",
        "rewards/adversarial/pair.py",
        "range(len(blocks) - layers, len(blocks))",
        "range(len(blocks))",
        "test_rewards_adversarial.py::test_the_pair_discriminator_learns_in_its_last_layers_only",
    ),
    Mutant(
        "the gradient penalty forgets the patches",
        "rewards/adversarial/heads.py",
        "for part in found), torch",
        "for part in found[:1]), torch",
        "test_rewards_adversarial.py::test_r1_is_the_squared_gradient_and_can_be_trained_on",
    ),
    Mutant(
        "the trigger word hides the caption",
        "flowrl/recipes/style.py",
        'told = tuple({**m, "caption": text}',
        'told = tuple({**m, "caption": trigger}',
        "test_style.py::test_every_prompt_that_is_trained_on_has_the_trigger_and_keeps_its_caption",
    ),
    Mutant(
        "an odd row of padding lies on the other side",
        "rewards/contrastive/prepare.py",
        "-(-e // 2)",
        "e // 2",
        "test_rewards_prepare.py",
    ),
    Mutant(
        "positions turn the other way",
        "rewards/contrastive/crossing.py",
        "torch.cat([-high, low], -1)",
        "torch.cat([high, low], -1)",
        "test_rewards_mps.py",
    ),
    Mutant(
        "a tie is in order", "rewards/check.py", "self.better > self.worse", "self.better >= self.worse", "test_rewards_check.py"
    ),
    Mutant(
        "16 bits by 256", "rewards/pictures.py", "astype(np.float64) / 257", "astype(np.float64) / 256", "test_rewards_pictures.py"
    ),
    # rewards in the loop
    Mutant(
        "rivals of two prompts meet",
        "rewards/lift.py",
        "np.stack([owner, rival], 1)",
        "np.stack([rival, rival], 1)",
        "test_rewards_forms.py",
    ),
    Mutant("a failure is remembered", "rewards/cache.py", "if not np.isnan(entry[0])", "if entry", "test_rewards_forms.py"),
    Mutant(
        "a shape is not part of a picture",
        "rewards/cache.py",
        "[image.shape, prompt, metadata]",
        "[prompt, metadata]",
        "test_rewards_forms.py",
    ),
    Mutant(
        "a gate looks behind the threshold",
        "rewards/combine.py",
        "score.values >= rule.gate",
        "values >= rule.gate",
        "test_rewards.py",
    ),
    Mutant("an unread gate is open", "rewards/combine.py", "valid = valid & known", "valid = valid & valid", "test_rewards.py"),
    Mutant("a skipped iteration trains", "flowrl/loop.py", "if skipped else _train", "if False else _train", "test_learners.py"),
    Mutant(
        "lessons are forgotten",
        "flowrl/scoring.py",
        "states[name], told, skip = reward.update",
        "_, told, skip = reward.update",
        "test_learners.py",
    ),
    Mutant(
        "a fall is compared with the first look",
        "flowrl/guards.py",
        "best = max(seen, key=",
        "best = min(seen[:1], key=",
        "test_guards.py",
    ),
    Mutant("guards speak while the reward falls", "flowrl/guards.py", "last.trained > best.trained and ", "", "test_guards.py"),
    Mutant("one bad look is enough", "flowrl/guards.py", "told[0] if all(told)", "told[0] if any(told)", "test_guards.py"),
    Mutant(
        "a hacked checkpoint is the best",
        "flowrl/recipes/jury.py",
        "math.nan if bad else",
        "math.nan if not seen else",
        "test_guards.py",
    ),
    Mutant(
        "a stopped run keeps its last weights",
        "flowrl/recipes/run.py",
        "                _go_back(session, folder)\n",
        "",
        "test_guards.py",
    ),
    # what is said of methods
    Mutant(
        "a second update leaves the clip idle",
        "flowrl/types.py",
        "self.updates * self.epochs == 1",
        "self.epochs == 1",
        "test_methods.py::test_a_clip_is_idle_where_its_only_step_starts_at_ratio_1",
    ),
    Mutant(
        "the report keeps the notes to itself",
        "flowrl/report/page.py",
        "_facts(run) + _said(run)",
        "_facts(run)",
        "test_report.py::test_what_a_run_had_to_say_of_its_settings_is_shown",
    ),
    Mutant(
        "a comb is taken for a tree",
        "flowrl/cli/catalog.py",
        "== {True, False}",
        "== {True}",
        "test_cli.py::test_methods_can_be_cut",
    ),
    Mutant(
        "a failed case is evidence",
        "tests/evidence.py",
        "and c.test not in passed",
        "and c.shown not in passed",
        "test_evidence.py::test_one_failed_case_takes_a_kind_away",
    ),
    Mutant(
        "evidence for any name",
        "tests/evidence.py",
        "if name not in known[KINDS[kind]]:",
        "if not name:",
        "test_evidence.py::test_a_mark_that_says_nothing_is_refused",
    ),
    Mutant(
        "Precise divided by the step",
        CLIP,
        'if self.by == "step" else',
        "if self.by else",
        "test_objectives.py::test_guard_by_slope_divides_each_edge_by_its_slope",
    ),
    # judges and comparisons
    Mutant(
        "one order stands for both",
        "rewards/pairs/rates.py",
        "return (asked.double() + turned.double()) / 2",
        "return asked.double()",
        "test_rewards_pairs.py",
    ),
    Mutant(
        "an odd number of opponents rounded down",
        "rewards/pairs/seats.py",
        "else (most + 1) // 2",
        "else most // 2",
        "test_rewards_pairs.py",
    ),
    Mutant(
        "an unread comparison counts half",
        "rewards/pairs/winrate.py",
        "np.where(np.isnan(p), 0.5, p) if self.compat else p)",
        "np.where(np.isnan(p), 0.5, p))",
        "test_rewards_pairs.py",
    ),
    Mutant(
        "a grade out of range is a score",
        "rewards/vlm/judge.py",
        "if template.low <= grade <= template.high else math.nan",
        "if template.low <= grade else math.nan",
        "test_rewards_vlm.py",
    ),
    Mutant(
        "the reference shown second",
        "rewards/vlm/judge.py",
        "(views[i], views[j])[::turned]",
        "(views[i], views[j])",
        "test_rewards_vlm.py",
    ),
    Mutant("the first conclusion counts", "rewards/vlm/read.py", "found[-1].group(1)", "found[0].group(1)", "test_rewards_vlm.py"),
    Mutant(
        "a question stands without those it needs",
        "rewards/vlm/checklist.py",
        "fails = any(value == 0 for value in above)",
        "fails = False",
        "test_rewards_vlm.py",
    ),
    Mutant(
        "a dead server asked to the end",
        "rewards/vlm/server.py",
        "if error.again and not answered.is_set():",
        "if False:",
        "test_rewards_vlm_server.py",
    ),
    Mutant(
        "a token told",
        "rewards/vlm/server.py",
        'return text.replace(secret, "***") if secret else text',
        "return text",
        "test_rewards_vlm_server.py",
    ),
    Mutant(
        "padded behind the answer's place",
        "rewards/vlm/local.py",
        '"padding_side": "left"',
        '"padding_side": "right"',
        "test_rewards_vlm_local.py",
    ),
    # served rewards, and rewards that wait
    Mutant("a busy server is not asked again", "rewards/remote/client.py", "(429, 502, 503, 504)", "(429,)", "test_remote.py"),
    Mutant(
        "a chunk's scores at other images",
        "rewards/remote/client.py",
        "values[rows] = told.values",
        "values[rows[::-1]] = told.values",
        "test_remote.py",
    ),
    Mutant("pixels are not counted", "rewards/remote/pictures.py", "if pixels > limits.pixels:", "if False:", "test_remote.py"),
    Mutant(
        "groups of two requests compete", "rewards/remote/worker.py", "call.group + start for", "call.group for", "test_remote.py"
    ),
    Mutant(
        "any token will do",
        "rewards/remote/server.py",
        "if token is not None and not",
        "if False and not",
        "test_remote_process.py",
    ),
    Mutant(
        "early chunks forget the state",
        "flowrl/overlap.py",
        "self.reward(samples, state)",
        "self.reward(samples, self.state)",
        "test_overlap.py",
    ),
    Mutant("early prompts one block too soon", "flowrl/draw.py", "(last == done - 1)", "(last == done)", "test_overlap.py"),
    # votes
    Mutant(
        "a tie of votes is a win",
        "rewards/votes/book.py",
        "0.5 if first == second",
        "1.0 if first == second",
        "test_rewards_votes.py",
    ),
    Mutant(
        "votes are judged by a head that saw them", "rewards/votes/head.py", "pairs.take(~held)", "pairs", "test_vote_strength.py"
    ),
    Mutant(
        "a line torn by a kill swallows the next vote",
        "flowrl/vote/book.py",
        'b"" if self.file.read(1) == b"\\n" else b"\\n"',
        'b""',
        "test_vote.py",
    ),
    Mutant(
        "a vote sent twice is refused",
        "flowrl/vote/desk.py",
        "Vote) and entry.id == id",
        "Vote) and entry.id == voter",
        "test_vote.py",
    ),
    Mutant(
        "any token opens the vote",
        "flowrl/vote/server.py",
        "if hmac.compare_digest(",
        "if given or hmac.compare_digest(",
        "test_vote.py",
    ),
    *(Mutant(*row) for row in mutants_models.ROWS),
)


def planted(mutant: Mutant | None, folder: Path) -> Path:
    """A copy of the project, with the fault in it."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copy(source, folder / name)
    if mutant is not None:
        text = (folder / mutant.file).read_text()
        if text.count(mutant.old) != 1:
            raise LookupError(
                f"{mutant.file} holds {mutant.old!r} {text.count(mutant.old)} times, not once: "
                f"the row {mutant.fault!r} must follow the code"
            )
        (folder / mutant.file).write_text(text.replace(mutant.old, mutant.new))
    return folder


def red(tests: str, mutant: Mutant | None = None) -> bool:
    """Whether one of these tests fails. A run that ends otherwise than by passing or failing tests is an error."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as place:
        folder = planted(mutant, Path(place))
        report = folder / "report.txt"
        child = os.fork()
        if child == 0:
            _tests(tests.split(), folder, report)
        code = _exit_code(child)
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise RuntimeError(f"{tests} did not run (code {code}):\n{report.read_text()[-3000:]}")
        return code == pytest.ExitCode.TESTS_FAILED


def _exit_code(child: int) -> int:
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -1


def _tests(names: Sequence[str], folder: Path, report: Path) -> None:
    """In the fork: forget this checkout, run the copy's tests, leave without the parent's clean-up."""
    code = -1
    try:
        out = os.open(report, os.O_CREAT | os.O_WRONLY)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(folder)
        os.environ["PYTHONPATH"] = str(folder)
        sys.path[:] = [
            str(folder),
            str(folder / "tests"),
            *(p for p in sys.path if Path(p or ".").resolve() not in (ROOT, ROOT / "tests")),
        ]
        assert not [name for name in sys.modules if name.split(".")[0] == "flowrl"], "flowrl was imported before the fork"
        code = int(
            pytest.main(
                [
                    "-x",
                    "-q",
                    "--no-header",
                    "-p",
                    "no:cacheprovider",
                    "-m",
                    "not slow and not ci and not gpu",
                    *(f"tests/{name}" for name in names),
                ]
            )
        )
        sys.stdout.flush()
    finally:
        os._exit(code & 0xFF)


def main(words: Sequence[str]) -> int:
    import torch  # noqa: F401  # once, for all forks

    rows = [m for m in MUTANTS if not words or any(w in m.file or w in m.fault for w in words)]
    for tests in dict.fromkeys(m.tests for m in rows):
        if red(tests):
            raise RuntimeError(f"{tests} fails without any fault; a fault could not be told from that")
    survivors = 0
    print(f"{'fault':44s} {'file':30s} {'noticed by':34s} seconds")
    for mutant in rows:
        start = time.monotonic()
        seen = red(mutant.tests, mutant)
        survivors += not seen
        told = mutant.tests if seen else f"SURVIVED {mutant.tests}"
        print(f"{mutant.fault:44s} {mutant.file:30s} {told:34s} {time.monotonic() - start:7.1f}", flush=True)
    print(f"{len(rows) - survivors} of {len(rows)} faults noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
