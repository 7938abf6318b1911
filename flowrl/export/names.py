"""Where ComfyUI finds a module of a diffusers network: keys.yaml, read."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

FUSE = "fuse"
SYMBOLS = re.compile(r"#|@|\*|\{in\}|\{out\}|\{down\}|\{up\}")


@dataclass(frozen=True)
class Place:
    """A diffusers module or parameter in the native layout.

    native: its name, or that of the larger module it is `rows` of, from row `start`, in units of the module's input width (rows 0:
    all of it).  of: how many units the larger module has.  swapped: halves of its rows stand the other way round there.
    """

    native: str
    start: int = 0
    rows: int = 0
    of: int = 0
    swapped: bool = False


@dataclass(frozen=True)
class Family:
    """A row of keys.yaml. names: (pattern of diffusers' names, native template, first row, rows)."""

    name: str
    architecture: str
    base: str
    whole: str
    part: str
    sources: tuple[str, ...]
    names: tuple[tuple[re.Pattern[str], str, int, int], ...]
    swapped: frozenset[str]
    swapped_last: tuple[re.Pattern[str], ...]

    def place(self, name: str, unet: Unet | None = None, last: int | None = None) -> Place | None:
        """None: ComfyUI knows no module or parameter of this name. unet: what a UNet's block numbers depend on; without it they are
        those of two layers a level.  last: number of the last block, where it is laid out differently."""
        for pattern, template, start, rows in self.names:
            if match := pattern.fullmatch(name):
                native = _filled(template, match, unet or Unet())
                end = any(m[1] == str(last) for p in self.swapped_last if (m := p.fullmatch(name)))
                of = max(s + r for _, t, s, r in self.names if t == template)
                return Place(native, start, rows, of, name in self.swapped or end)
        return None

    def key(self, name: str, place: Place) -> str:
        """What stands before .lora_A in a file; of a part that is to be fused, the key of the whole."""
        template = self.whole if not place.rows or self.part == FUSE else self.part
        return template.format(native=place.native, diffusers=name, flat=name.replace(".", "_"))

    @property
    def native(self) -> bool:
        """Whether whole modules go by native names, so that their rows have to stand as there."""
        return "{native}" in self.whole


@dataclass(frozen=True)
class Unet:
    """layers: resnets a level on the way down.  attended: levels on the way up that have attention."""

    layers: int = 2
    attended: frozenset[int] = frozenset()


@cache
def families() -> Mapping[str, Family]:
    """All of keys.yaml by name."""
    return {name: _family(name, row) for name, row in _rows().items()}


def of_network(kind: str) -> Family | None:
    """The family of a network's class name; None where no ComfyUI layout of it is known."""
    found = [name for name, row in _rows().items() if kind in row["networks"]]
    return families()[found[0]] if found else None


@cache
def _rows() -> Mapping[str, Any]:
    import yaml

    return yaml.safe_load(resources.files("flowrl.export").joinpath("keys.yaml").read_text(encoding="utf-8"))


def _family(name: str, row: Mapping[str, Any]) -> Family:
    stacks, tails = row.get("stacks", ()), row.get("tails", ())
    names = []
    for ours, theirs in row["names"].items():
        native, start, rows = (theirs, 0, 0) if isinstance(theirs, str) else theirs
        names.append((_pattern(ours, stacks, tails), native, start, rows))
    return Family(
        name,
        row["architecture"],
        row["base"],
        row["whole"],
        row.get("part", FUSE),
        tuple(row["sources"]),
        tuple(names),
        frozenset(row.get("swapped", ())),
        tuple(_pattern(p, stacks, tails) for p in row.get("swapped_last", ())),
    )


def _pattern(text: str, stacks: Collection[str], tails: Collection[str]) -> re.Pattern[str]:
    """Groups in the order of the symbols."""
    choice = {"#": r"(\d+)", "@": f"({'|'.join(map(re.escape, stacks))})"}
    choice["*"] = f"({'|'.join(re.escape(t).replace(re.escape('#'), '[0-9]+') for t in tails)})"
    return re.compile("".join(choice.get(c, re.escape(c)) for c in text))


def _filled(template: str, match: re.Match[str], unet: Unet) -> str:
    """The template with what the pattern's groups matched: numbers and words, each in order."""
    numbers = deque(int(g) for g in match.groups() if g.isdecimal())
    words = deque(g for g in match.groups() if not g.isdecimal())
    step = unet.layers + 1

    def fill(symbol: re.Match[str]) -> str:
        kind = symbol[0]
        if kind in "@*":
            return words.popleft()
        first = numbers.popleft()
        if kind == "#":
            return str(first)
        if kind == "{in}":
            return str(1 + step * first + numbers.popleft())
        if kind == "{out}":
            return str(step * first + numbers.popleft())
        if kind == "{down}":
            return str(step * (first + 1))
        # the up-sampler follows the level's last resnet and, where there is one, its attention
        return f"{step * (first + 1) - 1}.{2 if first in unet.attended else 1}"

    return SYMBOLS.sub(fill, template)
