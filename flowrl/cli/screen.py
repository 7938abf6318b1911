"""The last thing a training run prints: what changed on held-out prompts, where it is, what to do next."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from flowrl.recipe import Recipe

Part = Mapping[str, Any]
OWN = "train --model stabilityai/stable-diffusion-3.5-medium --reward clip=1 --prompts prompts.txt"


def final(folder: Path, console: Console | None = None) -> None:
    """Print the result in `folder`/result.json.

    Raises: FileNotFoundError if the run has none, ValueError if it cannot be read.
    """
    console = console or Console()
    result = _read(Path(folder) / "result.json")
    count, minutes = result.get("iterations"), result.get("minutes")
    console.print()
    did = [] if count is None else [f"{count} iteration{'s' * (count != 1)}"]
    did += [] if minutes is None else [f"{minutes:.1f} minutes"]
    console.print(Text(", ".join([result["method"], f"seed {result['seed']}", *did]), style="bold"))
    if result.get("before") and result.get("after"):
        console.print(_table(result["before"], result["after"]))
        gain = result.get("gain")
        if gain and _number(gain.get("score")):
            error = gain.get("standard_error")
            doubt = f" (standard error {error:.3f})" if _number(error) else ""
            console.print(f"gain on the same prompts {gain['score']:+.3f}{doubt}", highlight=False)
    else:
        console.print("no held-out evaluation before and after, so nothing to compare")
    # soft_wrap: a path or command broken over two lines cannot be copied
    console.print(Text(f"\nrun folder  {folder}"), soft_wrap=True)
    for file in _for_comfyui(Path(folder)):
        console.print(Text(f"for ComfyUI {file}   # into its models/loras"), soft_wrap=True)
    console.print(Text("\nnext"))
    for command, about in commands(Path(folder)):
        console.print(Text(f"  {command}", style="cyan").append(f"   # {about}", style="bright_black"), soft_wrap=True)


def commands(folder: Path) -> list[tuple[str, str]]:
    """Three commands to go on with, as they can be pasted into a shell."""
    from flowrl.models import EMBEDDED
    from flowrl.recipe import GIVEN

    recipe, run, flowrl = _recipe(folder), shlex.quote(str(folder)), program()
    trained, given = (folder / "lora").is_dir(), recipe.policy.model.startswith(GIVEN)
    sampled = ["sample", *_prompt(folder), *(["--lora", str(folder)] if trained else [])]
    if given or not trained:
        sampled += ["--model", "MODEL" if given else recipe.policy.model]
    sampled += ["--out", str(folder / "drawn")]
    further = f"train --resume {run} --iterations {2 * recipe.run.iterations}"
    embedded = recipe.policy.model in EMBEDDED
    return [
        (f"{flowrl} {shlex.join(sampled)}", "draw with what was trained"),
        (f"{flowrl} report {run} --open", "look at the curves and pictures"),
        (f"{flowrl} {OWN}", "train your own model") if embedded else (f"{flowrl} {further}", "train on, to twice the iterations"),
    ]


def _for_comfyui(folder: Path) -> list[Path]:
    """None of the embedded model's, which ComfyUI does not have."""
    from flowrl.export import LORA_FILE
    from flowrl.models import EMBEDDED

    found = sorted(path for path in (folder / "lora").glob("*.safetensors") if path.with_name(LORA_FILE).is_file())
    return [path for path in found if path.name != LORA_FILE and _recipe(folder).policy.model not in EMBEDDED]


def program() -> str:
    """How this flowrl is called from the shell the user is in, which need not have its environment activated."""
    script = Path(sys.executable).with_name("flowrl")
    found = shutil.which("flowrl")
    if found is not None and Path(found).absolute() == script.absolute():
        return "flowrl"
    if not script.is_file():
        return f"{shlex.quote(sys.executable)} -m flowrl"
    here = Path.cwd()
    return shlex.quote(str(script.relative_to(here) if script.is_relative_to(here) else script))


def _table(before: Part, after: Part) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("held out")
    for title in ("prompts", "before", "", "after", "change"):
        table.add_column(title, justify="right")
    for task, first in before.get("tasks", {}).items():
        last = after.get("tasks", {}).get(task)
        if last is not None:
            table.add_row(task, *_row(first, last))
    table.add_row("all", *_row(before, after), style="bold")
    return table


def _row(first: Part, last: Part) -> tuple[str, str, str, str, str]:
    known = _number(first.get("score")) and _number(last.get("score"))
    change = f"{last['score'] - first['score']:+.3f}" if known else "-"
    return str(last.get("n", "")), _interval(first), "→", _interval(last), change


def _interval(part: Part) -> str:
    if not _number(part.get("score")):
        return "not scored"
    low, high = part.get("low"), part.get("high")
    return f"{part['score']:.3f}" + (f" [{low:.3f}, {high:.3f}]" if _number(low) and _number(high) else "")


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not math.isnan(value)


def _recipe(folder: Path) -> Recipe:
    from flowrl.recipe import Recipe
    from flowrl.settings import load

    return load(folder / "run.yaml") if (folder / "run.yaml").is_file() else Recipe()


def _prompt(folder: Path) -> list[str]:
    """What to draw: the first prompt that the run showed, with its image."""
    index = folder / "samples" / "index.jsonl"
    lines = index.read_text(encoding="utf-8").splitlines() if index.is_file() else []
    row = json.loads(lines[0]) if lines else {"prompt": "a red circle"}
    return [row["prompt"], *(["--image", row["image"]] if "image" in row else [])]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        again = f"flowrl train --resume {path.parent}"
        raise FileNotFoundError(f"{path.parent} has no result.json: the run has not finished; go on with {again}")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(result, dict) or not {"method", "seed"} <= result.keys():
        raise ValueError(f"{path} is not a run's result: it has no method and seed")
    return result
