"""Images before and after, and contact sheets over the run."""

from __future__ import annotations

from html import escape

from flowrl.report.data import Pair, Run
from flowrl.report.images import tag
from flowrl.report.marks import tone

PROMPTS, SHEETS = 24, 12


def brief(value: float | None) -> str:
    """The score of one image: three digits, no trailing zeros."""
    return "–" if value is None else f"{value:.3g}".replace("-", "−")


def images(run: Run) -> str:
    groups: dict[str, list[Pair]] = {}
    for pair in run.pairs:
        groups.setdefault(pair.prompt, []).append(pair)
    if groups:
        more = f" The first {PROMPTS} of {len(groups)} prompts." if len(groups) > PROMPTS else ""
        cards = "".join(_prompt(prompt, pairs) for prompt, pairs in list(groups.items())[:PROMPTS])
        return (f'<h2>Before and after</h2><p class="sub">The same prompts and the same starting noise, with the score of each image.{more}</p>'
                f'<div class="prompts">{cards}</div>')
    return _sheets(run, "Samples")


def progress(run: Run) -> str:
    return _sheets(run, "Samples over the run") if run.pairs and len(run.sheets) > 1 else ""


def _sheets(run: Run, title: str) -> str:
    count = len(run.sheets)
    if not count:
        return ""
    picked = sorted({round(i * (count - 1) / max(min(count, SHEETS) - 1, 1)) for i in range(min(count, SHEETS))})
    cards = "".join(f'<figure>{tag(run.sheets[i][1], f"samples, {run.sheets[i][0]}", 1024)}<figcaption>{escape(run.sheets[i][0])}</figcaption></figure>'
                    for i in picked)
    return f'<h2>{title}</h2><p class="sub">Contact sheets as they were written.</p><div class="sheets">{cards}</div>'


def _prompt(prompt: str, pairs: list[Pair]) -> str:
    sides = ""
    for name in ("before", "after"):
        scores = [p.before_score if name == "before" else p.after_score for p in pairs]
        valid = [s for s in scores if s is not None]
        tiles = ""
        for pair, value in zip(pairs, scores, strict=True):
            moved = tone(value - pair.before_score) if name == "after" and value is not None and pair.before_score is not None else "same"
            arrow = {"up": "▲ ", "down": "▼ ", "same": ""}[moved]
            picture = tag(pair.before if name == "before" else pair.after, f"{name}: {prompt}, score {brief(value)}")
            tiles += f'<figure>{picture}<figcaption class="{moved}">{arrow}{brief(value)}</figcaption></figure>'
        mean = brief(sum(valid) / len(valid)) if valid else "not scored"
        sides += f'<div class="side {name}"><header><span>{name}</span><span>{mean}</span></header><div class="tiles">{tiles}</div></div>'
    task = f'<p class="task">{escape(pairs[0].task.replace("_", " "))}</p>' if pairs[0].task else '<p class="task"></p>'
    return f'<article class="prompt"><h3>{escape(prompt)}</h3>{task}<div class="sides">{sides}</div></article>'
