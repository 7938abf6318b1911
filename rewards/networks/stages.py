"""What a convolutional classifier says of images, stage by stage, so that squared distances are LPIPS or differences of style."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowrl.rewards.networks.weights import State, fit, package, place_of, tensors

# of images in [-1, 1]
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
TINY = 1e-10


class Shape(NamedTuple):
    """A torchvision classifier. convolutions: their places in `features`;  ends: of the ReLU that each stage ends with;  widths:
    channels there."""

    model: str
    weights: str
    convolutions: tuple[int, ...]
    ends: tuple[int, ...]
    widths: tuple[int, ...]


SHAPES = {
    "alex": Shape("alexnet", "AlexNet_Weights", (0, 3, 6, 8, 10), (1, 4, 7, 9, 11), (64, 192, 384, 256, 256)),
    "vgg": Shape(
        "vgg16",
        "VGG16_Weights",
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        (3, 8, 15, 22, 29),
        (64, 128, 256, 512, 512),
    ),
}


class Stages(nn.Module):
    """Images [N, 3, H, W] in [0, 1] -> the feature maps at the ends of five stages."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        models = package("lpips", "torchvision.models", "torchvision")
        self.features: nn.Sequential = getattr(models, shape.model)(weights=None).features
        self.ends = shape.ends

    def forward(self, x: Tensor) -> list[Tensor]:
        out = []
        x = ((2 * x - 1) - x.new_tensor(SHIFT)[:, None, None]) / x.new_tensor(SCALE)[:, None, None]
        for index, layer in enumerate(self.features[: self.ends[-1] + 1]):
            x = layer(x)
            if index in self.ends:
                out.append(x)
        return out


class Lpips(nn.Module):
    """Images -> vectors [N, *] a stage whose squared distances add up to LPIPS: unit feature maps, weighted a channel by the root
    of the learnt weight over the number of pixels."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.stages = Stages(shape)
        self.lin = nn.ParameterList([nn.Parameter(torch.zeros(1, width, 1, 1)) for width in shape.widths])

    def forward(self, x: Tensor) -> list[Tensor]:
        out = []
        for maps, weight in zip(self.stages(x), self.lin, strict=True):
            unit = maps / (torch.linalg.vector_norm(maps, dim=1, keepdim=True) + TINY)
            out.append((unit * (weight / maps[0, 0].numel()).sqrt()).flatten(1))
        return out


class Gram(nn.Module):
    """Images -> Gram matrices [N, C * C] a stage: G = F F^T / (C H W), F the feature map [C, H W]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.stages = Stages(shape)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [m.flatten(2) for m in self.stages(x)]
        return [(m @ m.mT / m[0].numel()).flatten(1) for m in maps]


def distances(weights: str) -> Lpips:
    """The network of LPIPS: alex, vgg or FILE, see `perceptual.lpips`.

    Raises: ValueError where the weights do not fit or a head is negative; FileNotFoundError, ModuleNotFoundError where they miss.
    """
    if weights in SHAPES:
        name, state = weights, _published("lpips", weights) | _heads(weights)
    else:
        name, state = _file("lpips", weights)
    network = Lpips(SHAPES[name])
    fit("lpips", network, state)
    if any((weight < 0).any() for weight in network.lin):
        raise ValueError(f"a head of {weights} is negative; the weights of LPIPS are 0 or more: give the published file")
    return network


def styles(weights: str) -> Gram:
    """The network of Gram matrices: alex, vgg or FILE, whose heads are left out.

    Raises: as `distances`.
    """
    name, state = (weights, _published("gram", weights)) if weights in SHAPES else _file("gram", weights)
    network = Gram(SHAPES[name])
    fit("gram", network, {key: value for key, value in state.items() if not key.startswith("lin.")})
    return network


def _file(reward: str, weights: str) -> tuple[str, State]:
    """(which of SHAPES, state) of a file with conv{i}.weight, conv{i}.bias, lin{i}.weight; other keys stay, to be refused."""
    path = place_of(reward, weights)
    if path is None or not path.is_file():
        raise ValueError(f"reward {reward}: {weights!r} is no file of weights; write {', '.join(SHAPES)} or FILE.safetensors")
    given = tensors(path)
    count = sum(key.startswith("conv") and key.endswith(".weight") for key in given)
    name = next((name for name, shape in SHAPES.items() if len(shape.convolutions) == count), None)
    if name is None:
        raise ValueError(f"reward {reward}: {path} holds {count} convolutions conv{{i}}.weight; AlexNet has 5, VGG16 has 13")
    names = {f"conv{i}": f"stages.features.{place}" for i, place in enumerate(SHAPES[name].convolutions)}
    state: State = {}
    for key, value in given.items():
        head, _, last = key.partition(".")
        linear = head.startswith("lin") and last == "weight"
        state[f"lin.{head.removeprefix('lin')}" if linear else f"{names.get(head, head)}.{last}"] = value
    return name, state


def _published(reward: str, name: str) -> State:
    """The convolutions of torchvision's network, downloaded once."""
    models = package(reward, "torchvision.models", "torchvision")
    source: Any = getattr(models, SHAPES[name].weights).IMAGENET1K_V1.url
    try:
        state: Mapping[str, Tensor] = torch.hub.load_state_dict_from_url(
            source, map_location="cpu", check_hash=True, weights_only=True, progress=False
        )
    except OSError as error:
        raise FileNotFoundError(
            f"reward {reward}: {source} could not be fetched: {error}; without network access give a file of weights: "
            f"{reward}:FILE.safetensors"
        ) from error
    return {f"stages.{key}": value for key, value in state.items() if key.startswith("features.")}


def _heads(name: str) -> State:
    """The learnt weights of version 0.1, from the package lpips, whose code is not run."""
    spec = importlib.util.find_spec("lpips")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"reward lpips takes the heads of {name} from the package lpips; pip install lpips, or give a file: "
            "lpips:FILE.safetensors",
            name="lpips",
        )
    given = tensors(Path(spec.submodule_search_locations[0]) / "weights" / "v0.1" / f"{name}.pth")
    return {f"lin.{key.removeprefix('lin').partition('.')[0]}": value for key, value in given.items()}
