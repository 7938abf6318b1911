"""flowrl methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from .catalog import Entry

COLUMNS = ("name", "samples", "advantage", "objective", "updates", "evidence", "paper")
LEAST = 30
"""Columns of text that a summary beside the others must have; with fewer it goes below."""


def methods(
    name: Annotated[str | None, typer.Argument(help="One method, to be explained; none: the table of all.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="One line a method, fields parted by tabs, for other programs.")] = False,
) -> None:
    """List every method with what our tests show of it, or explain one.

    Examples:

        flowrl methods

        flowrl methods mix_grpo

        flowrl methods --plain | cut -f 1,7
    """
    from rich.console import Console

    from . import catalog

    console = Console(highlight=False)
    if name is not None:
        explain(catalog.entry(name), console)
    elif plain:
        print("\n".join("\t".join(line) for line in ((*COLUMNS, "section", "summary"), *map(_fields, catalog.entries()))))
    else:
        listing(catalog.entries(), console)


def _row(of: Entry) -> tuple[str, ...]:
    samples, advantage, objective = of.parts
    return of.name, samples, advantage, objective, str(of.method.updates), " ".join(of.shown) or "-", of.docs.paper or "-"


def _fields(of: Entry) -> tuple[str, ...]:
    return *_row(of), of.section, of.docs.summary


def listing(every: Sequence[Entry], console: Console) -> None:
    """The table. The first sentence of a method stands beside its row, or below where the screen is narrow."""
    from rich.text import Text

    from . import catalog

    rows = {of.name: _row(of) for of in every}
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows.values(), strict=True)]
    left = console.width - sum(widths) - len(widths) - 1

    def line(cells: Sequence[str]) -> str:
        return " ".join(c.rjust(w) if t == "updates" else c.ljust(w) for c, w, t in zip(cells, widths, COLUMNS, strict=True))

    console.print(Text(line(COLUMNS).rstrip(), style="bold"), soft_wrap=True)
    for title in dict.fromkeys(of.section for of in every):
        console.print(Text(f"\n{title}", style="bold"))
        for of in (of for of in every if of.section == title):
            said = Text(of.docs.summary if left >= LEAST else f"  {of.docs.summary}", style="bright_black")
            said.truncate(left if left >= LEAST else console.width - 1, overflow="ellipsis")
            whole = Text(line(rows[of.name]) if left >= LEAST else line(rows[of.name]).rstrip())
            console.print(whole.append(" ").append_text(said) if left >= LEAST else whole, soft_wrap=True)
            if left < LEAST:
                console.print(said, soft_wrap=True)
    console.print()
    for kind, means in catalog.KINDS.items():
        _wrapped(f"{kind:8} ", means, console)
    console.print(Text("flowrl methods NAME explains one"))


def explain(of: Entry, console: Console) -> None:
    """One method: what it is, of what it is made, what its paper says and what our tests show."""
    from rich.text import Text

    console.print(Text(of.name, style="bold"))
    for paragraph in of.docs.what:
        console.print()
        _wrapped("", paragraph, console)
    console.print()
    _pairs(
        [(k, v) for k, v in (("source", of.docs.source), ("differs", of.docs.differs), ("raises", of.docs.raises)) if v], console
    )
    for title, pairs in (("arguments", _arguments(of)), ("made of", _made_of(of)), ("evidence", _shown(of))):
        console.print(Text(f"\n{title}", style="bold"))
        _pairs(pairs, console)
    console.print(Text("\nreported by its authors", style="bold"))
    for said in of.numbers or ("no numbers that we have read",):
        _wrapped("  ", said, console)
    console.print(Text("\ntry", style="bold"))
    for command in commands(of):
        # soft_wrap: a command broken over two lines cannot be copied
        console.print(Text(f"  {command}", style="cyan"), soft_wrap=True)


def _pairs(pairs: Sequence[tuple[str, str]], console: Console) -> None:
    """Keys and values; a value goes on under itself, and no word is broken."""
    wide = max((len(key) for key, _ in pairs), default=0)
    for key, value in pairs:
        _wrapped(f"  {key:{wide}}  " if wide else "  ", value, console)


def _wrapped(start: str, value: str, console: Console) -> None:
    import textwrap

    from rich.text import Text

    far = textwrap.fill(
        value, console.width, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    console.print(Text(far), soft_wrap=True)


def _arguments(of: Entry) -> list[tuple[str, str]]:
    import inspect

    found = inspect.signature(of.make).parameters.values()
    return [(p.name, f"{p.default!r}  ({p.annotation})") for p in found]


def _made_of(of: Entry) -> list[tuple[str, str]]:
    from flowrl.direct import Direct

    from . import catalog

    method, plan = of.method, of.plan
    count = f"images {len(plan.leaves)}, initial noises {len(plan.roots)}, noisy steps {len(plan.edges)}"
    pairs = [
        ("plan", f"{catalog.kind_of(plan)}; of one prompt, on {catalog.STEPS} steps: {count}, calls {plan.nfe(method.solver)}")
    ]
    pairs += [("law", catalog.called(plan.law) if len(plan.edges) else "ode"), ("solver", catalog.spelled(method.solver))]
    if isinstance(method, Direct):
        pairs += [("gradient", catalog.spelled(method.scheme)), ("loss", catalog.spelled(method.loss))]
    else:
        pairs += [("advantage", catalog.spelled(method.advantage)), ("objective", catalog.spelled(method.objective))]
    sets = [f"{name} ({of_weights.kind})" for name, of_weights in method.weights.items()]
    pairs += [("weights", ", ".join(["current", *sets]))]
    pairs += [("samples by", method.sample_from), ("saves", method.export), ("updates", f"{method.updates} a rollout")]
    return [*pairs, ("clip", "none" if isinstance(method, Direct) else _clip(method.objective.clips, method.idle_clip))]


def _clip(clips: bool, idle: bool) -> str:
    if not clips:
        return "none"
    return "cannot act: the ratio is 1 at the one step of a rollout; raise updates" if idle else "acts from the second update on"


def _shown(of: Entry) -> list[tuple[str, str]]:
    return [(kind, test) for kind, tests in of.shown.items() for test in tests] or [("none", "no test shows anything of it yet")]


def commands(of: Entry) -> list[str]:
    """Two commands to look at it and to try it on the embedded model, with what else its parts ask for."""
    from flowrl.advantage import Spo
    from flowrl.direct import Direct

    train = f"flowrl train shapes --set method.name={of.name}"
    if isinstance(of.method, Direct):
        train += " --reward clip"
    elif of.method.features:
        # the second reward only informs
        train += " --reward shapes:strict --reward clip=0"
    elif isinstance(of.method.advantage, Spo):
        # its rewards must lie in [0, 1]
        train += " --reward shapes:strict"
    if of.plan.learned is not None:
        train += " --set policy.noise_head=true"
    return [f"flowrl plan {of.name}", train]
