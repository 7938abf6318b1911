"""CogView4, whose network is told unshifted levels."""

from __future__ import annotations

from diffusers import CogView4Pipeline, CogView4Transformer2DModel
from tiny import seeded
from transformers import GlmConfig, GlmModel

from .case import Case
from .unnamed import decoder, flow, lively, quiet, vae, words


def cogview4() -> CogView4Pipeline:
    """Two calls, sizes among the arguments, text padded on the left to a multiple of 16, a square-root shift."""
    with seeded(1):
        network = CogView4Transformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=16,
            time_embed_dim=8,
            condition_dim=4,
            pos_embed_max_size=8,
            sample_size=8,
            rope_axes_dim=(8, 8),
        )
        lively(network, scale=2.0)
        names = words()
        scheduler = flow(use_dynamic_shifting=True, time_shift_type="linear", base_shift=0.25, max_shift=0.75)
        plain = vae(shift_factor=0.0)
        return quiet(CogView4Pipeline(names, decoder(GlmModel, GlmConfig, len(names)), plain, network, scheduler))


LONG = "two blue square left of a green circle of a red circle left of three green square of two"
"""More than 16 tokens: with the other prompt it has no call in common."""
SPEC = {"guidance": 5.0, "height": 32, "width": 48, "max_sequence_length": 32}
CASES = [Case("cogview4", cogview4, SPEC, prompts=("a red circle", LONG))]
