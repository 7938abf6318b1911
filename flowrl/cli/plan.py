"""flowrl plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flowrl.direct import Direct
    from flowrl.samplers import Plan
    from flowrl.samplers.solvers import Solver
    from flowrl.types import Method


def plan(
    method: Annotated[str, typer.Argument(help="A method's name, or module:function that returns one.")],
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An argument, e.g. window=4.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the schedule.")] = 10,
    group: Annotated[int, typer.Option(min=2, help="Group size: images a prompt; of combs, children a step.")] = 12,
    shift: Annotated[float, typer.Option(help="Static shift of the schedule (Stable Diffusion 3 has 3).")] = 3.0,
    iteration: Annotated[int, typer.Option(min=0, help="Windows that move stand where they are at this iteration.")] = 0,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts an iteration, to count its recorded calls.")] = 8,
    rows: Annotated[int, typer.Option("--slice", min=1, help="Most rows of a recorded call.")] = 32,
    picture: Annotated[Path | None, typer.Option(help="Draw the plan into this file (.png, .svg, .pdf).")] = None,
) -> None:
    """Show how a method samples: its tree over the noise levels, which steps are noisy and recorded, and what one prompt costs.

    In the tree, o is a recorded state, # an image, ~ a noisy step and - a quiet one.

    Examples:

        flowrl plan mix_grpo

        flowrl plan mix_grpo --set window=4 --set noise=0.9 --iteration 50

        flowrl plan branch_grpo --steps 20 --group 16

        flowrl plan g2rpo --steps 16 --picture g2rpo.png
    """
    from flowrl.samplers import schedules

    whole = build(method, settings or [], group)
    made = whole.plan_at(iteration, schedules.sd3(steps, shift), 0)
    print(f"{method} at iteration {iteration}, {steps} steps, shift {shift:g}, group {group}")
    print("\n".join(["", *describe(made, whole.solver, prompts, rows)]))
    if picture is not None:
        save(picture, {method: (made, whole.solver)})
        print(f"\n  drawn into {picture}")


def describe(plan: Plan, solver: Solver, prompts: int, rows: int) -> list[str]:
    """The plan as text: its tree, a line a step of the schedule, and the cost of one prompt."""
    from flowrl import drawing

    return [drawing.tree_text(plan), "", drawing.steps_text(plan), "", drawing.cost_text(plan, solver, prompts, rows)]


def save(path: Path, plans: Mapping[str, tuple[Plan, Solver]]) -> None:
    """Draw plans side by side into a file.

    Raises: ValueError for a suffix that is no picture's.
    """
    from flowrl import drawing

    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"{path} names no picture; use a name that ends in .png, .svg or .pdf")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.picture(plans).savefig(path, dpi=200)


def build(name: str, settings: Sequence[str] = (), group: int = 12) -> Method | Direct:
    """The method a command line names, with `settings` ("window=4") as its arguments.

    Raises: ValueError for an unknown name or argument, with the nearest there are.
    """
    from flowrl.recipe import MethodSpec, Recipe
    from flowrl.recipes.build import METHODS, method
    from flowrl.settings import arguments, resolve

    recipe = resolve(Recipe(), {"method.name": name})
    args = resolve(recipe, [f"method.args.{text}" for text in settings]).method.args
    if name in METHODS:
        arguments(METHODS[name], args, where="")
    return method(MethodSpec(name, args), group)
