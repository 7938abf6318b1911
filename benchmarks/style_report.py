"""The style comparison's lines as STYLE.md and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from style_arms import ARMS

FIGURE = Path("assets/figures/style.png")
PAGE = Path("benchmarks/STYLE.md")
SEARCHED = 100  # `style.SEARCHED`
ALLOWED = 0.02  # alignment that may be lost against fine-tuning
Line = dict[str, Any]
Final = dict[tuple[str, float], list[Line]]


def write(lines: Sequence[Line], options: Any, work: Path) -> None:
    """Raises: ValueError where no arm has been run with these options."""
    final = chosen(lines, options)
    if len(final) < 2:
        raise ValueError("no arm has a line with these options; run without --report first")
    figure(final, work)
    PAGE.write_text(page(final, options))
    print(PAGE.read_text())


def chosen(lines: Sequence[Line], options: Any) -> Final:
    """(arm, rate) -> its runs of full length."""
    out: Final = {}
    for name in ARMS:
        wanted = 0.0 if name == "untrained" else options.seconds
        for line in lines:
            arm, rate, seconds, seed = line["key"]
            if (arm, seconds) == (name, wanted) and seed != SEARCHED:
                out.setdefault((name, rate), []).append(line)
    return out


def mean(runs: Sequence[Line], name: str) -> float:
    return float(np.mean([run[name] for run in runs]))


def page(final: Final, options: Any) -> str:
    rows = [
        "| arm | rate | steps | style | strict | soft | nearest / new | style without the trigger | strict without |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, rate), runs in final.items():
        style, strict = (f"{mean(runs, n):.3f} ± {mean(runs, n + '_se'):.3f}" for n in ("style", "strict"))
        copied = mean(runs, "nearest") / mean(runs, "nearest_new")
        rows.append(
            f"| {ARMS[name][1]} | {rate:g} | {mean(runs, 'steps'):.0f} | {style} | {strict} | {mean(runs, 'soft'):.3f} | "
            f"{copied:.2f} | {mean(runs, 'style_without'):.3f} | {mean(runs, 'strict_without'):.3f} |"
        )
    return "\n".join([*_about(options), "", *rows, "", *_verdict(final), "", *_how(options.decoder_steps)]) + "\n"


def _about(options: Any) -> list[str]:
    rates = ", ".join(f"{rate:g}" for rate in options.rates)
    rate = (
        f"its learning rate the best of {rates} after {options.search:g} s" if options.search else "its learning rate not searched"
    )
    return [
        "# A style from 24 images at equal time",
        "",
        "Written by `python benchmarks/style.py --report` from `style.jsonl`; nothing by hand.",
        "",
        "![pictures of each arm](../assets/figures/style.png)",
        "",
        f"Each arm had {options.seconds:g} s of processor time (one thread, all that training needs, looking not included),",
        f"{len(options.seeds)} seed(s); {rate}. Pictures of",
        f"{options.captions} held-out captions, one each, 20 steps, the same noise for all.",
    ]


def _verdict(final: Final) -> list[str]:
    """Whether adversarial arms reach fine-tuning, in words that follow from the numbers."""
    base, out = {rate: runs for (name, rate), runs in final.items() if name == "sft"}, []
    for (name, rate), runs in final.items():
        for of, other in base.items() if name not in ("sft", "untrained") else ():
            style, strict, soft = (mean(runs, n) - mean(other, n) for n in ("style", "strict", "soft"))
            what = "reaches" if style >= 0 and strict >= -ALLOWED else "**does not reach**"
            out.append(
                f"* {ARMS[name][1]} at {rate:g} {what} fine-tuning at {of:g}: style {style:+.3f}, strict {strict:+.3f}, soft "
                f"{soft:+.3f}."
            )
    asked = f"Asked was a style at least equal to plain fine-tuning's, with strict at least its own - {ALLOWED}:"
    return [asked, "", *out] if out else ["There is nothing to compare with fine-tuning."]


def _how(decoder_steps: int) -> list[str]:
    return [
        "style: 0 plain, 1 fully in the style, by a convolutional judge trained on 1500 other renderings (± standard error over",
        "captions). strict, soft: the shapes verifier. nearest / new: distance to the nearest of the 24 images over that of new",
        "images of the style with the same captions; well below 1 is copying. rate: of what learns last; fine-tuning before the",
        "adversarial reward has 0.001.",
        "",
        "What limits this comparison: the embedded autoencoder knows plain pictures only, so its decoder first learns pictures",
        "between plain and styled (`style_world.py`); every arm draws with it, and the flow model has never seen the style. The",
        f"decoder learnt for {decoder_steps} steps (after 300 its hatching was faint). Whether the judge sees more than the",
        "paper was not asked. A reward can only choose among what is drawn, and the flow model draws nothing of the style: no",
        "reward gets far. The trigger is a word the tokenizer does not know; any word in front, known or not, costs the untrained",
        "model most of its alignment: with one word more its captions stand where it never saw them.",
    ]


def figure(final: Final, work: Path) -> None:
    """A row of pictures an arm, with the trigger and below it without."""
    strips = []
    for (name, _), runs in final.items():
        arm, rate, seconds, seed = runs[0]["key"]
        image = Image.open(work / f"{arm}_{rate:g}_{seconds:g}_{seed}.png").convert("RGB")
        strip = Image.new("RGB", (image.width, image.height + 14), "white")
        ImageDraw.Draw(strip).text((2, 1), f"{ARMS[name][1]}, rate {rate:g} (below: without the trigger)", fill="black")
        strip.paste(image, (0, 14))
        strips.append(strip)
    whole = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), "white")
    top = 0
    for strip in strips:
        whole.paste(strip, (0, top))
        top += strip.height
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    whole.save(FIGURE, optimize=True)
