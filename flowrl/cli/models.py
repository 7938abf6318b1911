"""flowrl models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from flowrl.memory import Card, Preset, Settings, Shape
    from flowrl.memory.plan import Peak

GB = 1e9
CHECK = "check"
COLUMNS = ("name", "size", "smallest", "licence")
NARROW = (24, 80)
"""GB whose presets a terminal of fewer than 120 columns has room for."""
PARTS = {
    "weights": "the network",
    "adapter": "what is trained",
    "optimizer": "its moments",
    "gradients": "",
    "activations": "a training call, forward and backward",
    "sampling": "a call of the rollout",
    "encoders": "weights of the text encoders",
    "encoding": "encoding a prompt",
    "vae": "weights of the decoder, in float32",
    "decode": "decoding",
    "step": "an optimizer step",
    "reward": "its network and its call",
    "overhead": "assumed: CUDA's context, and 10 % for the allocator",
}


def models(
    name: Annotated[str | None, typer.Argument(help='One model, to be explained; "check": see the second argument.')] = None,
    path: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="After check: a folder, file or hub name.")] = None,
    vram: Annotated[float | None, typer.Option(min=1, help="GB of the GPU it is planned for; default: all presets.")] = None,
    resolution: Annotated[str | None, typer.Option(help="Side of the images, or HEIGHTxWIDTH, in pixels.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a video.")] = None,
    reward: Annotated[str | None, typer.Option(help="The reward that lies beside it; default pickscore.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Load it, and measure the peaks on the CUDA device here.")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Of check: policy.dtype=...")] = None,
    device: Annotated[str, typer.Option(help="Where check puts the model.")] = "cpu",
    plain: Annotated[bool, typer.Option("--plain", help="One line a model, fields parted by tabs, for other programs.")] = False,
) -> None:
    """List the models flowrl plans for, with the smallest GPU for each; or explain one: what lies in memory, and what to set.

    Peaks are computed from the real networks without loading them. 24 GB are those of a card sold as such.
    check loads a model of yours and holds it against its own pipeline, run by a process without flowrl: schedule, images with and
    without guidance, exact replay, gradients, a saved adapter; and names the first module that differs.

    Examples:

        flowrl models

        flowrl models sd3.5-medium --vram 24

        flowrl models z-image --vram 16 --resolution 768

        flowrl models check my/model --device cuda --set policy.dtype=bfloat16 --set policy.guidance=4.5
    """
    from rich.console import Console

    console = Console(highlight=False)
    if name == CHECK:
        if not check(path, settings or [], device, console):
            raise typer.Exit(1)
    elif path is not None or settings:
        which = path or name or "MODEL"
        raise ValueError(f"one model at a time; to hold it against its pipeline, write: flowrl models check {which}")
    elif name is not None:
        explain(name, console, vram, shape(resolution, frames), reward, measure)
    elif vram or resolution or frames or reward or measure:
        raise ValueError("--vram, --resolution, --frames, --reward and --measure explain one model: flowrl models NAME --vram 24")
    elif plain:
        _plain()
    else:
        listing(console)


def check(model: str | None, settings: list[str], device: str, console: Console) -> bool:
    """A line for each finding as it comes; whether all are well.

    Raises: ValueError without a model, or for one that cannot be loaded.
    """
    import tempfile
    from pathlib import Path

    from rich.text import Text

    from flowrl.conformance import examine, subject_of
    from flowrl.models.caller import own
    from flowrl.recipe import PolicySpec, Recipe
    from flowrl.settings import resolve

    if model is None:
        raise ValueError("give the model to check: flowrl models check MODEL, a folder in diffusers format or a hub name")
    base = Recipe(policy=PolicySpec(model=model, dtype="float32"))
    wrong = 0
    with tempfile.TemporaryDirectory() as work:
        subject = subject_of(own(resolve(base, settings).policy), Path(work), device)
        for found in examine(subject):
            measured = "" if found.measured is None else f"  {found.measured:.2g} of {found.limit:.2g}"
            line = Text("ok     " if found.passed else "WRONG  ", style="green" if found.passed else "bold red")
            said = f"  {found.said}" if found.said and (not found.passed or found.measured is None) else ""
            console.print(line.append(f"{found.check}{measured}{said}", style="default"), soft_wrap=True)
            wrong += not found.passed
    console.print("all well: flowrl trains what its pipeline draws" if not wrong else f"{wrong} wrong: do not train it as it is")
    return not wrong


def shape(resolution: str | None, frames: int | None) -> tuple[int | None, int | None, int | None]:
    """(height, width, frames) as far as they are given. Raises: ValueError for a resolution that is not a number or two."""
    if resolution is None:
        return None, None, frames
    sides = resolution.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise ValueError(f"resolution {resolution!r}: give a side such as 512, or height and width such as 480x832")
    return int(sides[0]), int(sides[-1]), frames


def _presets(card: Card) -> dict[int, Preset | None]:
    """By size of GPU; none for a card the table does not hold yet, which would take minutes to count."""
    from flowrl.memory import SIZES, preset
    from flowrl.memory.table import table

    return {size: preset(card, size) if card.name in table() else None for size in SIZES}


def _brief(preset: Preset | None) -> str:
    """What a preset gives up: "512 ck nf4 x8"."""
    if preset is None:
        return "-"
    s = preset.settings
    height, width, frames = s.shape
    size = f"{height}" if height == width else f"{height}x{width}"
    marks = ["ck" if s.checkpointing else "", "8bit" if s.optim != "adamw" else "", s.quantize or ""]
    return " ".join([size + (f"x{frames}" if frames > 1 else ""), *filter(None, marks), f"x{s.slice}"])


def _cells(card: Card, found: dict[int, Preset | None]) -> tuple[str, ...]:
    least = next((size for size, preset in found.items() if preset is not None), None)
    many = f"{card.networks} x " if card.networks > 1 else ""
    return card.name, f"{many}{card.billions:.3g} B", f"{least} GB" if least else "-", card.licence.partition(" (")[0]


def _plain() -> None:
    from flowrl.memory import CARDS, SIZES

    print("\t".join((*COLUMNS, "hub", "pipeline", *(f"{size} GB" for size in SIZES))))
    for card in CARDS.values():
        found = _presets(card)
        print("\t".join((*_cells(card, found), card.hub, card.pipeline, *map(_brief, found.values()))))


def listing(console: Console) -> None:
    """The table, by sections, with a preset a size of GPU."""
    from rich.text import Text

    from flowrl.memory import SIZES
    from flowrl.memory.cards import SECTIONS

    wide = console.width >= 120
    table = _table(show_header=True)
    kept, sizes = (range(len(COLUMNS)), SIZES) if wide else ((0, 2), NARROW)
    for title in (*(COLUMNS[i] for i in kept), *(f"{size} GB" for size in sizes)):
        table.add_column(title, justify="right" if title == "size" else "left", no_wrap=title != "licence")
    for title, cards in SECTIONS.items():
        table.add_row()
        table.add_row(Text(title, style="bold"))
        for card in cards:
            found = _presets(card)
            cells = _cells(card, found)
            table.add_row(*map(Text, (*(cells[i] for i in kept), *(_brief(found[size]) for size in sizes))))
    console.print(table)
    console.print()
    console.print("A LoRA on the attention is trained; the reward beside it is PickScore. Peaks are computed, not measured.")
    console.print("ck: blocks recomputed;  nf4, int8: quantised weights;  8bit: optimizer;  xN: rows of a training call")
    console.print("One in detail: flowrl models NAME --vram 24")


def explain(
    name: str,
    console: Console,
    vram: float | None = None,
    asked: tuple[int | None, int | None, int | None] = (None, None, None),
    reward: str | None = None,
    measure: bool = False,
) -> None:
    """What is known of one model, and its presets or the one for `vram`.

    Raises: ValueError for an unknown model, a resolution its network cannot take, or where nothing fits.
    """
    from rich.text import Text

    from flowrl.memory import SIZES, card, preset
    from flowrl.memory.presets import REWARD, settings

    one = card(name)
    start = None
    if asked != (None, None, None) or reward is not None:
        start = settings(one, _whole(one, asked), reward or REWARD)
    sizes = SIZES if vram is None else (vram,)
    found = {size: preset(one, size, start) for size in sizes}
    if vram is not None and found[vram] is None:
        raise ValueError(_nothing(one, vram, start))
    _facts(one, console)
    if vram is None:
        table = _table(show_header=True)
        for title in ("GPU", "settings", "peak", "largest phase"):
            table.add_column(title, no_wrap=True)
        for size, chosen in found.items():
            told = ("-", "", "") if chosen is None else (_brief(chosen), f"{chosen.peak.total / GB:.1f} GB", _largest(chosen.peak))
            table.add_row(*map(Text, (f"{size} GB", *told)))
        console.print(table)
        console.print(f"What lies in memory, and the line to copy: flowrl models {name} --vram 24")
    elif (chosen := found[vram]) is not None:
        real = _measured(chosen) if measure else {}
        _breakdown(chosen.peak, real, console)
        console.print(Text(command(chosen, reward or REWARD), style="bold"), soft_wrap=True)
    if measure and vram is None:
        raise ValueError("--measure wants the preset to be measured: add --vram and the GB of this GPU")


def command(preset: Preset, reward: str) -> str:
    """The line a user copies."""
    import shlex

    def written(value: object) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)

    sets = " ".join(f"--set {shlex.quote(f'{key}={written(value)}')}" for key, value in preset.overrides.items())
    scored = f"{reward}=1" + (",offload=true" if preset.settings.reward_offload else "")
    return f"flowrl train --model {preset.card.hub} --prompts prompts.txt --reward {scored} {sets}"


def _whole(card: Card, asked: tuple[int | None, int | None, int | None]) -> Shape:
    """The shape asked for, filled up from the card's first."""
    from flowrl.memory.calls import scale

    height, width, frames = (given or usual for given, usual in zip(asked, card.shapes[0], strict=True))
    unit = 2 * scale(card)
    if height % unit or width % unit:
        raise ValueError(f"resolution {height}x{width}: both sides must be multiples of {unit} for {card.name}")
    if frames > 1 and not card.video:
        raise ValueError(f"frames {frames}: {card.name} makes images; leave --frames out")
    if frames % 4 != 1:
        raise ValueError(f"frames {frames}: give one more than a multiple of 4, such as 17, 33 or 81")
    return height, width, frames


def _nothing(card: Card, vram: float, start: Settings | None) -> str:
    from flowrl.memory.plan import peak
    from flowrl.memory.presets import preset, rungs, settings

    last = [s for s, _ in rungs(start or settings(card, card.shapes[-1]))][-1]
    least = peak(card, last)
    size = next((n for n in (12, 16, 24, 48, 80) if preset(card, n, start)), None)
    hint = f"a GPU of {size} GB is enough" if size else "no GPU of up to 80 GB is enough"
    return (
        f"{card.name} does not fit {vram:g} GB: with everything saved, the phase '{_largest(least)}' still comes to "
        f"{least.total / GB:.1f} GB; {hint}, or give a smaller --resolution or --reward"
    )


def _largest(peak: Peak) -> str:
    return max(peak.phases.items(), key=lambda item: item[1])[0]


def _facts(card: Card, console: Console) -> None:
    from rich.text import Text

    from flowrl.memory.calls import FAMILIES

    table = _table()
    facts = {
        "hub": card.hub,
        "licence": card.licence,
        "pipeline": card.pipeline,
        "trained": f"a LoRA on {', '.join(FAMILIES[card.pipeline].targets)}",
        "parameters": f"{card.networks} x {card.billions:g} B" if card.networks > 1 else f"{card.billions:g} B",
        "text encoders": ", ".join(part.kind for part in card.encoders),
        "configs from": card.source,
        "unsourced": "; ".join(card.unsourced),
    }
    console.print(Text(card.name, style="bold"))
    for what, said in facts.items():
        if said and said != "0 B":
            table.add_row(Text(what, style="bright_black"), Text(said))
    console.print(table)


def _measured(preset: Preset) -> dict[str, int]:
    from flowrl.memory.measured import check, measured
    from flowrl.recipe import Recipe
    from flowrl.settings import resolve

    check()
    guidance = 4.5 if preset.card.guided else 1.0
    given: dict[str, Any] = {**preset.overrides, "policy.model": preset.card.hub, "policy.guidance": guidance}
    return measured(resolve(Recipe(), given).policy, preset.settings.slice)


def _breakdown(peak: Peak, real: dict[str, int], console: Console) -> None:
    """Bytes by what they are for, then by phase."""
    from rich.text import Text

    table = _table()
    for what, told in PARTS.items():
        table.add_row(Text(what), Text(f"{getattr(peak, what) / GB:7.2f} GB"), Text(told, style="bright_black"))
    table.add_row()
    for phase, size in peak.phases.items():
        beside = f"measured {real[phase] / GB:.2f} GB" if phase in real else ""
        mark = "largest" if phase == _largest(peak) else ""
        table.add_row(Text(f"phase {phase}"), Text(f"{size / GB:7.2f} GB"), Text("  ".join(filter(None, (mark, beside)))))
    table.add_row(Text("peak", style="bold"), Text(f"{peak.total / GB:7.2f} GB", style="bold"), Text("largest phase and overhead"))
    console.print(table)


def _table(show_header: bool = False) -> Table:
    from rich.table import Table

    return Table(box=None, pad_edge=False, show_header=show_header, header_style="bold", padding=(0, 2, 0, 0))
