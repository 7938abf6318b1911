"""What a run leaves for others: the adapter for diffusers and for ComfyUI, or the whole network."""

from .diffusers import LORA_FILE, load_lora, save, save_lora, save_transformer

__all__ = ["LORA_FILE", "load_lora", "save", "save_lora", "save_transformer"]
