"""The video trainer: what the latents mean, the tensors the pipeline will feed the network, export, and the stages from scratch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowrl.shapes_video import autoencoder, flow, measure, networks, text, tokenizer
from flowrl.shapes_video.export import export, pipeline
from flowrl.shapes_video.judge import ELSE, STANDS
from flowrl.shapes_video.judge_training import motion
from flowrl.shapes_video.pretrain import main
from flowrl.shapes_video.render import FRAMES, SIZE, draw
from flowrl.shapes_video.start import linear_start
from flowrl.shapes_video.world import DIRECTIONS, SPEEDS, captions

SEED = 5


@pytest.fixture(scope="module")
def encoder():
    return text.fresh(SEED).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def data(encoder) -> flow.Pool:
    return flow.pool(encoder, SEED, 40)


def small() -> nn.Module:
    return flow.network(SEED, layers=1, width=32)["transformer"]


def test_every_caption_survives_the_tokenizer() -> None:
    tokens = tokenizer.build()
    for it in captions("train")[::20] + captions("heldout"):
        ids = tokens(it["prompt"]).input_ids
        assert tokenizer.vocabulary()[tokenizer.UNKNOWN] not in ids and len(ids) <= tokenizer.LENGTH
        assert tokens.decode(ids, skip_special_tokens=True) == it["prompt"]


@pytest.mark.parametrize("length", [16, 512])
def test_training_sees_the_words_that_the_pipeline_makes(encoder, length: int) -> None:
    pipe = pipeline(small(), networks.autoencoder(), encoder)
    prompts = ["a red circle moves left slowly", "", "a video of a cross standing still"]
    theirs, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=length)
    ours = text.embed(encoder, text.token_ids(prompts), length)
    assert ours.shape == (3, length, networks.TEXT_WIDTH) and torch.allclose(ours, theirs, atol=1e-5)


def test_latents_mean_squares_halves_and_colours() -> None:
    pixels = torch.full((1, 3, FRAMES, SIZE, SIZE), autoencoder.WHITE)
    # Blue is off in one square, in frames 3 and 4.
    pixels[:, 2, 3:5, 4:8, 8:12] = 0.0
    z = autoencoder.meaning(pixels)
    assert z.shape == (1, *networks.LATENT)
    expected = torch.zeros_like(z)
    expected[0, 6, 1, 1, 2], expected[0, 7, 1, 1, 2] = -autoencoder.WHITE, autoencoder.WHITE
    assert torch.allclose(z, expected, atol=1e-6)


def test_the_autoencoder_starts_as_the_means_its_latents_stand_for() -> None:
    torch.manual_seed(0)
    model = networks.autoencoder()
    linear_start(model)
    pixels = autoencoder.to_tensor(draw(captions("train")[::200], 2))
    z = autoencoder.meaning(pixels)
    with torch.no_grad():
        said, out = model.encode(pixels).latent_dist.mean, autoencoder.decoded(model, z)
    colours = [0, 1, 2, 4, 5, 6]
    assert float((said - z)[:, colours].abs().mean()) < 0.15 * float(z[:, colours].abs().mean())
    # what the latents say, each mean repeated over its square and its two frames
    first, rest = z[:, :3, :1], torch.stack([z[:, :3, 1:], z[:, 4:7, 1:]], 3).flatten(2, 3).repeat_interleave(2, 2)
    wanted = torch.cat([first, rest], 2).repeat_interleave(4, 3).repeat_interleave(4, 4) + autoencoder.WHITE
    assert float((out - wanted).abs().mean()) < 0.2 * float((wanted - autoencoder.WHITE).abs().mean())


def test_prescribed_latents_are_what_an_encoder_that_has_learned_says() -> None:
    videos = draw(captions("train")[::5], 3)
    z = autoencoder.prescribed(videos)
    assert abs(float(z.mean())) < 0.05 and abs(float(z.std()) - 1) < 0.05
    model = networks.autoencoder()
    assert model.encode(autoencoder.to_tensor(videos[:2])).latent_dist.mean.shape == z[:2].shape


def test_decoding_for_training_is_decoding_without_the_clamp() -> None:
    torch.manual_seed(0)
    model = networks.autoencoder()
    z = torch.randn(2, *networks.LATENT)
    with torch.no_grad():
        assert torch.equal(autoencoder.decoded(model, z).clamp(-1, 1), model.decode(z).sample)


def test_the_pipeline_takes_its_sizes_from_the_autoencoder(encoder) -> None:
    pipe = pipeline(small(), networks.autoencoder(), encoder)
    assert (pipe.vae_scale_factor_temporal, pipe.vae_scale_factor_spatial) == (4, 4)
    assert pipe.prepare_latents(1, networks.CHANNELS, SIZE, SIZE, FRAMES).shape == (1, *networks.LATENT)


def test_no_held_out_caption_is_shown_not_even_as_a_wrong_one(encoder) -> None:
    held = text.embed(encoder, text.token_ids([it["prompt"] for it in captions("heldout")])).flatten(1)
    shown = flow.pool(encoder, SEED, 60).words.flatten(1)
    assert float(torch.cdist(held, shown).min()) > 0.1


def test_a_batch_depends_on_seed_and_step_only(data: flow.Pool) -> None:
    a, b, other = (flow.batch(data, step, SEED) for step in (7, 7, 8))
    assert torch.equal(a.x1, b.x1) and torch.equal(a.sigma, b.sigma) and torch.equal(a.words, b.words)
    assert not torch.equal(a.x1, other.x1)
    some = [flow.batch(data, step, SEED).words for step in range(60)]
    empty = torch.cat([(words[:, : tokenizer.LENGTH] == data.words[-1]).flatten(1).all(1) for words in some])
    assert 0.05 < float(empty.float().mean()) < 0.15
    assert {words.shape[1] for words in some} <= {tokenizer.LENGTH, flow.LONG_LENGTH}


def test_the_velocity_of_the_loss_is_noise_minus_data(data: flow.Pool) -> None:
    class Oracle(nn.Module):
        def forward(self, hidden_states: Tensor, timestep: Tensor, **_: object) -> tuple[Tensor]:
            at = (timestep / 1000).view(-1, 1, 1, 1, 1)
            return (it.x1 - (hidden_states - at * it.x1) / (1 - at),)

    it = flow.batch(data, 0, SEED)
    # (x_sigma - sigma x1) / (1 - sigma) = x0 up to float32 rounding, which noise near sigma = 1 enlarges
    assert flow.velocity_loss(Oracle(), it).item() < 1e-5


def test_our_sampler_and_the_pipeline_draw_the_same_video(encoder) -> None:
    torch.manual_seed(1)
    net, model = small(), networks.autoencoder()
    nn.init.normal_(net.proj_out.weight, std=0.3)
    model.register_to_config(latents_mean=[0.1] * networks.CHANNELS, latents_std=[0.5] * networks.CHANNELS)
    pipe = pipeline(net, model, encoder)
    pipe.set_progress_bar_config(disable=True)
    prompts = ["a red circle moves left slowly", "a cross stands still"]
    theirs = measure.videos(pipe, prompts, [3, 4])
    noise = measure.noise([3, 4])
    ours = autoencoder.decode(model, flow.sample(net, text.embed(encoder, text.token_ids(prompts)), noise))
    assert theirs.shape == (2, FRAMES, SIZE, SIZE, 3)
    assert np.abs(theirs.astype(int) - ours).max() <= 1 and theirs.std() > 1


def test_exporting_leaves_the_networks_as_they_are(encoder, tmp_path: Path) -> None:
    net, vae = small(), networks.autoencoder()
    before = {name: value.clone() for module in (net, vae, encoder) for name, value in module.state_dict().items()}
    export(net, vae, encoder, tmp_path / "pipe")
    after = {name: value for module in (net, vae, encoder) for name, value in module.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.float32 for name in before)
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]
    said = "".join(path.read_text() for path in (tmp_path / "pipe").rglob("*.json"))
    assert str(tmp_path) not in said and "TokenizersBackend" not in said
    pipe = measure.load(tmp_path / "pipe")
    loaded = {str(p.dtype) for part in (pipe.transformer, pipe.vae, pipe.text_encoder) for p in part.parameters()}
    assert loaded == {"torch.float32"}
    assert torch.allclose(pipe.transformer.state_dict()["proj_out.weight"], net.state_dict()["proj_out.weight"], atol=1e-3)


def test_the_judge_is_told_true_motions() -> None:
    at = np.arange(FRAMES)[:, None] - 4.0
    for i, direction in enumerate(DIRECTIONS.values()):
        for k, pace in enumerate((0.8, 1.9)):
            assert motion(16 + at * pace * np.array(direction)) == i * len(SPEEDS) + k
    assert motion(np.full((FRAMES, 2), 16.0)) == STANDS
    assert motion(16 + at * np.array([1.5, 1.5])) == motion(16 + np.abs(at) * np.array([1.5, 0.0])) == ELSE


def test_a_stage_without_its_input_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the stage 'text'"):
        main(["flow", "--out", str(tmp_path), "--assets", str(tmp_path / "assets")])
    with pytest.raises(FileNotFoundError, match="run the stage 'autoencoder'"):
        main(["judge", "--out", str(tmp_path), "--assets", str(tmp_path / "assets")])


@pytest.mark.slow
def test_all_stages_run_from_scratch_and_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "POOL", 200)
    monkeypatch.setattr("flowrl.shapes_video.judge_training.POOL", 200)
    main(["autoencoder", "text", "flow", "judge", "--out", str(tmp_path), "--assets", str(tmp_path / "assets"), "--steps", "40"])
    for stage in ("autoencoder", "text", "flow", "judge"):
        lines = [json.loads(line) for line in (tmp_path / f"{stage}.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        assert len(losses) == 40 and np.mean(losses[-8:]) < 0.9 * np.mean(losses[:8]), stage
    main(["export", "--out", str(tmp_path), "--assets", str(tmp_path / "assets")])
    assert measure.videos(measure.load(tmp_path / "assets" / "shapes-video"), ["a cross stands still"], [1]).shape[1] == FRAMES
