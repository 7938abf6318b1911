"""report.html: one file, no network, no script."""

from __future__ import annotations

import os
from html import escape
from importlib.resources import files
from pathlib import Path

from flowrl.folder import write_atomic
from flowrl.report import curves, gallery, settings, strengths, tables
from flowrl.report.data import Run, number, read, table
from flowrl.report.marks import counted, section

# The page may load nothing: neither a script nor anything from elsewhere, whatever a prompt says.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write(run_folder: os.PathLike[str] | str) -> Path:
    """Write report.html into a run's folder and return its path. Works on unfinished runs and says what is missing.

    Raises: FileNotFoundError if there is no such folder; OSError if it cannot be written to.
    """
    path = Path(run_folder)
    return write_atomic(path / "report.html", render(read(path)).encode())


def render(run: Run) -> str:
    """The page as text."""
    method, model, name = _names(run)
    charts, absent = curves.curves(run)
    missing = list(run.missing)
    if absent and run.rows:
        missing.append(f"Not logged, so not drawn: {', '.join(absent)}.")
    items = "".join(f"<li>{escape(m)}</li>" for m in missing)
    notes = f'<ul class="notes" aria-label="What is missing">{items}</ul>' if missing else ""
    verdict = tables.verdict(run)
    lead = f'<p class="lead">{escape(verdict)}</p>' if verdict else ""
    training = section("Training", "By iteration; point at a curve for its values.", charts)
    result = tables.hero(run) + _facts(run) + _said(run) + notes + gallery.images(run) + tables.tasks(run) + tables.others(run)
    body = result + strengths.grid(run.path) + training + gallery.progress(run) + settings.timing(run) + settings.configuration(run)
    title = escape(f"{method} on {model}")
    style = files("flowrl.report").joinpath("style.css").read_text()
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{title} · flowrl</title>'
        f"<style>{style}</style></head>"
        f'<body><main><header><p class="over">flowrl · {escape(name)}</p><h1>{title}</h1>{lead}</header>{body}'
        f"<footer>Written by flowrl from <code>{escape(str(run.path))}</code>.</footer></main></body></html>\n"
    )


def _said(run: Run) -> str:
    """What the run itself had to say of its settings."""
    said = run.result.get("notes")
    items = "".join(f"<li>{escape(str(s))}</li>" for s in said) if isinstance(said, list) else ""
    return f'<ul class="notes" aria-label="Of the settings">{items}</ul>' if items else ""


def _names(run: Run) -> tuple[str, str, str]:
    method = run.result.get("method") or table(run.config.get("method")).get("name") or "a method"
    model = run.result.get("model") or table(run.config.get("policy")).get("model") or "a model"
    return str(method), str(model), str(table(run.config.get("run")).get("name") or run.path.resolve().name)


def _facts(run: Run) -> str:
    result = run.result
    done = result.get("iterations", run.rows[-1]["iteration"] + 1 if run.rows else None)
    seed = result.get("seed", table(run.config.get("run")).get("seed"))
    prompts = table(result.get("after")).get("n")
    minutes = number(result.get("minutes"))
    protocol = table(result.get("protocol"))
    drawn = _drawn(*(protocol.get(key) for key in ("images", "steps")))
    facts = (
        (f"{{}} {counted(done, 'iteration')}", done),
        ("{} minutes", None if minutes is None else f"{minutes:.1f}"),
        (f"{{}} held-out {counted(prompts, 'prompt')}", prompts),
        ("held out: {}", drawn),
        ("judged by {}", protocol.get("judge")),
        ("seed {}", seed),
    )
    items = "".join(f"<li>{form.format(f'<b>{escape(str(value))}</b>')}</li>" for form, value in facts if value is not None)
    return f'<ul class="facts">{items}</ul>' if items else ""


def _drawn(images: object, steps: object) -> str | None:
    """How held-out images were drawn, where that is known."""
    if images is None or steps is None:
        return None
    return f"{images} {counted(images, 'image')} a prompt, {steps} {counted(steps, 'step')}"
