"""LPIPS and Gram matrices against their formulas by hand, on random weights, and LPIPS on its own where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from outside import SHARED, needs
from torch import Tensor
from torch.nn import functional

from flowrl.rewards import Place, Samples, make
from flowrl.rewards.networks import perceptual, stages

torchvision = pytest.importorskip("torchvision")

REAL = needs("weights/lpips")


def images(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def picture(file: Path, image: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(image).save(file)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of AlexNet and its heads, under the names of the published file."""
    from safetensors.torch import save_file

    made = torch.Generator().manual_seed(0)
    shape = stages.SHAPES["alex"]
    features = torchvision.models.alexnet(weights=None).features
    state = {}
    for i, place in enumerate(shape.convolutions):
        size = features[place].weight.shape
        state[f"conv{i}.weight"] = torch.randn(size, generator=made) * (2 / size[1:].numel()) ** 0.5
        state[f"conv{i}.bias"] = torch.randn(size[0], generator=made) * 0.1
    state |= {f"lin{i}.weight": torch.rand(1, width, 1, 1, generator=made) for i, width in enumerate(shape.widths)}
    path = tmp_path_factory.mktemp("lpips") / "random.safetensors"
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("references")
    picture(path / "a.png", images(64, 80, seed=5))
    picture(path / "b.png", images(48, 48, seed=6))
    (path / "notes.txt").write_text("not an image")
    return path


def maps(weights: Path, x: Tensor) -> list[Tensor]:
    """Feature maps after each ReLU, by hand. x: [N, 3, H, W] in [0, 1]"""
    from safetensors.torch import load_file

    w = load_file(weights)
    x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    out = []
    for i, (stride, pad) in enumerate([(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)]):
        if i in (1, 2):
            x = functional.max_pool2d(x, 3, 2)
        x = functional.conv2d(x, w[f"conv{i}.weight"], w[f"conv{i}.bias"], stride, pad).relu()
        out.append(x)
    return out


def published_distance(weights: Path, a: Tensor, b: Tensor) -> Tensor:
    """LPIPS as its paper writes it."""
    from safetensors.torch import load_file

    w = load_file(weights)
    total = torch.zeros(len(a))
    for i, (p, q) in enumerate(zip(maps(weights, a), maps(weights, b), strict=True)):
        p, q = p / (p.square().sum(1, keepdim=True).sqrt() + 1e-10), q / (q.square().sum(1, keepdim=True).sqrt() + 1e-10)
        total = total + functional.conv2d((p - q) ** 2, w[f"lin{i}.weight"]).mean((1, 2, 3))
    return total


def tensor(some: np.ndarray) -> Tensor:
    return torch.from_numpy(some).permute(0, 3, 1, 2).float() / 255


@pytest.mark.evidence("arithmetic", "lpips")
def test_lpips_is_the_weighted_distance_of_unit_features(weights: Path, tmp_path: Path) -> None:
    shown, references = images(3, 64, 80), images(2, 64, 80, seed=9)
    for index, reference in enumerate(references):
        picture(tmp_path / f"{index}.png", reference)
    near: Any = perceptual.lpips(f"{weights}@{tmp_path}", Place(batch=2))
    both = [published_distance(weights, tensor(shown), tensor(r[None]).expand(3, -1, -1, -1)) for r in references]
    torch.testing.assert_close(near(shown, [""] * 3, [{}] * 3), -torch.stack(both).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.evidence("arithmetic", "gram")
def test_gram_is_the_distance_of_gram_matrices(weights: Path, tmp_path: Path) -> None:
    shown, reference = images(2, 64, 80), images(64, 80, seed=9)
    picture(tmp_path / "0.png", reference)
    near: Any = perceptual.gram(f"{weights}@{tmp_path}")
    wanted = torch.zeros(2)
    for p, q in zip(maps(weights, tensor(shown)), maps(weights, tensor(reference[None])), strict=True):
        size = p[0].numel()
        wanted += (torch.einsum("nahw,nbhw->nab", p, p) - torch.einsum("nahw,nbhw->nab", q, q)).div(size).square().sum((1, 2))
    torch.testing.assert_close(near(shown, [""] * 2, [{}] * 2), -wanted, rtol=1e-4, atol=1e-6)


def test_gram_is_blind_to_where_things_are_and_lpips_is_not(weights: Path, tmp_path: Path) -> None:
    # statistics of a texture are those of the texture mirrored, up to the network's own sense of left and right
    reference = images(96, 96, seed=3)
    picture(tmp_path / "0.png", reference)
    moved, other = np.roll(reference, 48, axis=1)[None], (images(1, 96, 96, seed=4) // 4)
    for make_one, alike in ((perceptual.gram, 10.0), (perceptual.lpips, 0.0)):
        near: Any = make_one(f"{weights}@{tmp_path}")
        same, far = near(moved, [""], [{}]), near(other, [""], [{}])
        assert far < same < 0
        assert far / same > alike


@pytest.mark.parametrize("name", ["lpips", "gram"])
def test_gradient_belongs_to_the_score_and_points_to_the_reference(weights: Path, folder: Path, name: str) -> None:
    near = make(f"{name}:{weights}@{folder}")
    shown = images(2, 64, 64)
    x = (torch.from_numpy(shown).float() / 255).requires_grad_()
    scores = near.with_graph(x, ["", ""], [{}, {}])  # pyright: ignore
    pixels = torch.from_numpy(shown)[None]
    told, _ = near(Samples(pixels, [""], [{}], torch.ones(1, 2, dtype=torch.bool), torch.zeros(2).long()), near.init())
    torch.testing.assert_close(scores.detach(), told.values[0], rtol=1e-4, atol=1e-6)
    (slope,) = torch.autograd.grad(scores.sum(), x)
    assert slope.isfinite().all()
    step = 1e-3 * slope / slope.flatten(1).norm(dim=1)[:, None, None, None]
    assert (near.with_graph(x.detach() + step, ["", ""], [{}, {}]) > scores).all()  # pyright: ignore


def test_black_images_have_a_finite_gradient(weights: Path, folder: Path) -> None:
    near: Any = perceptual.lpips(f"{weights}@{folder}")
    x = torch.zeros(1, 64, 64, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(near.with_graph(x, [""], [{}]).sum(), x)
    assert slope.isfinite().all()


def test_each_prompt_is_compared_with_its_own_references(weights: Path) -> None:
    near = make(f"lpips:{weights}")
    pixels, scored = torch.from_numpy(images(3, 2, 64, 64)), torch.ones(3, 2, dtype=torch.bool)
    references = [[pixels[0, 0].numpy()], [pixels[1, 1].numpy(), pixels[1, 1].numpy()], []]
    samples = Samples(pixels, ["a", "b", "c"], [{}] * 3, scored, torch.zeros(2).long(), references)
    with pytest.warns(UserWarning, match="could not score 2 of 6"):
        told, _ = near(samples, near.init())
    assert told.valid.tolist() == [[True, True], [True, True], [False, False]]
    torch.testing.assert_close(told.values[[0, 1], [0, 1]], torch.zeros(2), rtol=0, atol=1e-6)
    assert (told.values[[0, 1], [1, 0]] < -1e-3).all()


def test_a_video_is_as_near_as_its_frames(weights: Path, folder: Path) -> None:
    near: Any = perceptual.lpips(f"{weights}@{folder}", Place(batch=3))
    video = images(2, 2, 64, 64)
    frames = near(video.reshape(4, 64, 64, 3), [""] * 4, [{}] * 4).unflatten(0, (2, 2)).mean(1)
    torch.testing.assert_close(near(video, [""] * 2, [{}] * 2), frames)


def test_references_cover_the_image_and_keep_their_shape() -> None:
    reference = images(40, 100)
    torch.testing.assert_close(perceptual.covering(reference, 40, 60)[0], tensor(reference[None])[0, :, :, 20:80])
    assert perceptual.covering(reference, 64, 64).shape == (1, 3, 64, 64)
    assert perceptual.covering(reference, 33, 200).shape == (1, 3, 33, 200)


def test_bad_weights_references_and_sizes_are_told_of(weights: Path, folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for change, said in (
        ({"lin0.weight": -torch.ones(1, 64, 1, 1)}, "is negative; the weights of LPIPS are 0 or more"),
        ({"lin7.weight": torch.ones(1)}, r"1 unexpected \(lin.7\)"),
        ({"conv5.weight": torch.ones(1)}, "holds 6 convolutions"),
    ):
        save_file(load_file(weights) | change, tmp_path / "bad.safetensors")
        with pytest.raises(ValueError, match=said):
            perceptual.lpips(str(tmp_path / "bad.safetensors"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"there are no images"):
        perceptual.lpips(f"{weights}@{tmp_path / 'empty'}")
    with pytest.raises(FileNotFoundError, match=r"is a file; after @ comes a folder of images"):
        perceptual.gram(f"{weights}@{weights}")
    with pytest.raises(ValueError, match=r"images are 16 x 64; the network needs 32 pixels a side or more"):
        near: Any = perceptual.lpips(f"{weights}@{folder}")
        near(images(1, 16, 64), [""], [{}])


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, (sigma, sigma, 0))


@REAL
@pytest.mark.evidence("real", "lpips")
def test_real_lpips_orders_blur_and_other_pictures() -> None:
    # recorded for another photograph: blur of sigma 1 gives 0.17, of sigma 4 0.63, another picture 0.69
    from PIL import Image

    cbook = pytest.importorskip("matplotlib.cbook")
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        photo = np.array(Image.open(file).convert("RGB").crop((128, 40, 384, 296)))
    shown = np.stack([photo, blurred(photo, 1), blurred(photo, 4), images(256, 256)])
    network = Place().house(stages.distances(str(SHARED / "weights" / "lpips" / "lpips_alexnet_v0.1.safetensors")))
    same, soft, softer, other = perceptual.towards(network, shown, [photo]).tolist()
    assert abs(same) < 1e-6
    assert -0.3 < soft < -0.05
    assert -0.9 < softer < -0.4
    assert other < softer < soft
    assert perceptual.towards(network, photo[None], [shown[2]]).item() == pytest.approx(softer, rel=1e-4)
