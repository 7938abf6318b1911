"""Methods as `flowrl methods` tells of them: read from signatures, docstrings, default plans and what the tests showed."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cached_property, partial
from importlib.resources import files

from torch import Tensor

from flowrl import direct, drawing, methods
from flowrl.direct import Direct
from flowrl.methods.claims import NUMBERS
from flowrl.objectives import Surrogate
from flowrl.samplers import Plan, schedules
from flowrl.types import Method

KINDS = {
    "golden": "step, credit and loss equal recorded numbers of the published code",
    "derived": "equal to closed forms or written-out formulas, or to recorded numbers in part only",
    "learns": "improves a toy reward in the real training loop",
}
SECTIONS = {
    "Made for images and video": methods.VISUAL,
    "Ported from language-model RL": methods.PORTED,
    "Direct reward gradients": direct.TABLE,
}
STEPS = 10
Evidence = dict[str, dict[str, list[str]]]


def evidence() -> Evidence:
    """method -> kind -> tests, as pytest --evidence wrote it."""
    return json.loads((files("flowrl.methods") / "evidence.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Docs:
    """A docstring in its parts, each a single line; what: its paragraphs."""

    what: tuple[str, ...]
    raises: str
    source: str
    differs: str

    @property
    def summary(self) -> str:
        """The first sentence."""
        found = re.match(r".+?\.(?=\s|$)", self.what[0])
        return found[0] if found else self.what[0]

    @property
    def paper(self) -> str:
        """The arXiv number of its source, or nothing."""
        found = re.search(r"\b\d{4}\.\d{5}\b", self.source)
        return found[0] if found else ""


def docs(function: Callable[..., object]) -> Docs:
    what, *rest = re.split(r"(?:^|\s)(Raises|Source|Differs):\s+", inspect.getdoc(function) or "")
    parts = dict(zip(rest[::2], (" ".join(text.split()) for text in rest[1::2]), strict=True))
    paragraphs = tuple(" ".join(text.split()) for text in what.strip().split("\n\n"))
    return Docs(paragraphs, *(parts.get(name, "") for name in ("Raises", "Source", "Differs")))


def called(value: object) -> str:
    """The name of a part: of a law, an advantage, an objective."""
    if isinstance(value, partial):
        return called(value.func)
    if isinstance(value, Surrogate):
        return value.name
    if is_dataclass(value):
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(value).__name__).lower()
    # what a function returns is named by the function that made it
    return getattr(value, "__qualname__", str(value)).partition(".")[0]


def spelled(value: object) -> str:
    """A part with the fields that are not as by default."""
    if isinstance(value, partial):
        return _with(called(value), value.keywords)
    if is_dataclass(value):
        held = {f.name: getattr(value, f.name) for f in fields(value) if f.init and f.name != "name"}
        default = {f.name: f.default for f in fields(value)}
        return _with(
            called(value), {k: v for k, v in held.items() if default[k] is MISSING or (v is not default[k] and v != default[k])}
        )
    if isinstance(value, Tensor):
        return f"{value.numel()} numbers"
    if callable(value):
        return f"a function of {called(value)}" if "<locals>" in getattr(value, "__qualname__", "") else called(value)
    return f"{value:g}" if isinstance(value, float) else repr(value) if " " in str(value) else str(value)


def _with(name: str, held: dict[str, object]) -> str:
    return f"{name}({', '.join(f'{k} {spelled(v)}' for k, v in held.items())})" if held else name


def kind_of(plan: Plan) -> str:
    """How a plan samples: ODE, chains, tree, or comb (a quiet way whose states have noisy children)."""
    if not plan.noisy.any():
        return "ODE"
    below = drawing.children(plan)
    if any({bool(plan.noisy[c]) for c in nodes} == {True, False} for node, nodes in below.items() if node >= 0):
        return "comb"
    return "tree" if len(plan.leaves) > len(plan.roots) else "chains"


@dataclass(frozen=True)
class Entry:
    """A row of the table of methods."""

    name: str
    section: str
    make: Callable[..., Method | Direct]
    shown: dict[str, list[str]]

    @cached_property
    def method(self) -> Method | Direct:
        return self.make()

    @cached_property
    def plan(self) -> Plan:
        return self.method.plan_at(0, schedules.sd3(STEPS, 3.0), 0)

    @cached_property
    def docs(self) -> Docs:
        return docs(self.make)

    @property
    def numbers(self) -> tuple[str, ...]:
        return NUMBERS.get(self.name, ())

    @property
    def parts(self) -> tuple[str, str, str]:
        """Names of how it samples, of its advantage and of its objective."""
        if isinstance(self.method, Direct):
            return kind_of(self.plan), "-", self.method.loss.kind
        credit = getattr(self.method.advantage, "estimate", self.method.advantage)
        return kind_of(self.plan), called(credit), called(self.method.objective)


def entries() -> list[Entry]:
    shown = evidence()
    return [Entry(name, title, make, shown.get(name, {})) for title, table in SECTIONS.items() for name, make in table.items()]


def entry(name: str) -> Entry:
    """Raises: ValueError for a name that is no method's, with the nearest."""
    from flowrl.recipes.build import METHODS
    from flowrl.said import near

    for one in entries():
        if one.name == name:
            return one
    raise ValueError(f"method {name!r} is unknown{near(name, METHODS)}; flowrl methods lists all")
