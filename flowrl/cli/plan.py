"""flowrl plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flowrl.samplers import Plan
    from flowrl.types import Method


def plan(
    method: Annotated[str, typer.Argument(help="A method's name, or module:function that returns one.")],
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An argument, e.g. window=4.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the schedule.")] = 10,
    group: Annotated[int, typer.Option(min=2, help="Images a prompt.")] = 12,
    shift: Annotated[float, typer.Option(help="Static shift of the schedule (Stable Diffusion 3 has 3).")] = 3.0,
    iteration: Annotated[int, typer.Option(min=0, help="Windows that move stand where they are at this iteration.")] = 0,
) -> None:
    """Show how a method samples: which steps are noisy and recorded, and what one prompt costs.

    Examples:

        flowrl plan mix_grpo

        flowrl plan mix_grpo --set window=4 --set noise=0.9 --iteration 50

        flowrl plan flow_grpo --steps 20
    """
    from flowrl.samplers import schedules

    sigmas = schedules.sd3(steps, shift)
    made = build(method, settings or [], group).plan_at(iteration, sigmas, 0)
    print(f"{method} at iteration {iteration}, {steps} steps, shift {shift:g}, {group} images a prompt")
    print(describe(made))


def build(name: str, settings: Sequence[str] = (), group: int = 12) -> Method:
    """The method a command line names, with `settings` ("window=4") as its arguments.

    Raises: ValueError for an unknown name or argument, with the nearest there are.
    """
    from flowrl.methods import TABLE
    from flowrl.recipe import MethodSpec, Recipe
    from flowrl.recipes.build import method
    from flowrl.settings import arguments, resolve

    recipe = resolve(Recipe(), {"method.name": name})
    args = resolve(recipe, [f"method.args.{text}" for text in settings]).method.args
    if name in TABLE:
        arguments(TABLE[name], args, where="")
    return method(MethodSpec(name, args), group)


def describe(plan: Plan) -> str:
    """The plan as text: a line a step of the schedule, then the cost of one prompt."""
    levels = sorted({float(s) for s in plan.sigma}, reverse=True)
    parent, noisy, sigma = plan.parent.tolist(), plan.noisy.tolist(), plan.sigma.tolist()
    jumps: dict[tuple[float, float], list[int]] = {}
    for node, above in enumerate(parent):
        if above >= 0:
            jumps.setdefault((sigma[above], sigma[node]), []).append(node)
    lines = [f"  {'sigma':>7}    {'next':>7}  {'edges':>6}  {'noisy':>6}  {'std':>8}"]
    for (high, low), nodes in sorted(jumps.items(), key=lambda item: (-item[0][0], -item[0][1])):
        recorded = [node for node in nodes if noisy[node]]
        std = f"{_std(plan, recorded[0]):8.4f}" if recorded else f"{'-':>8}"
        lines.append(f"  {high:7.4f} -> {low:7.4f}  {len(nodes):6d}  {len(recorded) or '-':>6}  {std}")
    note = "" if len(plan.edges) else "  (no recorded states: the objective re-noises the images)"
    quiet = sum(1 for above, loud in zip(parent, noisy, strict=True) if above >= 0 and not loud)
    lines += [
        "",
        f"  noise levels              {len(levels)}",
        f"  initial states (roots)    {len(plan.roots)}",
        f"  images (leaves)           {len(plan.leaves)}",
        f"  recorded (noisy) edges    {len(plan.edges)}",
        f"  quiet edges               {quiet}",
        f"  network calls to sample   {plan.nfe()}",
        f"  rows to train on          {len(plan.rows)}{note}",
        f"  calls an image            {plan.nfe() / len(plan.leaves):.2f}",
    ]
    return "\n".join(lines)


def _std(plan: Plan, node: int) -> float:
    import torch

    return float(plan.coefficients(torch.tensor([node]))[2][0])
