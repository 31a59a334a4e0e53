"""Limits of the page: what one request may hold and cost."""

from __future__ import annotations

from kgcli.config import SIZE_MULTIPLE

NONE = "none"  # no LoRA, no ControlNet
MAX_IMAGES = 8  # of one prompt, and of one click
MAX_STEPS = 200
MAX_SIDE = 1024  # pixels
RANGES: dict[str, tuple[float, float]] = {  # of the page's sliders, by the name of the field
    "steps": (1, MAX_STEPS),
    "guidance_scale": (0, 20),
    "width": (SIZE_MULTIPLE, MAX_SIDE),
    "height": (SIZE_MULTIPLE, MAX_SIDE),
    "lora_scale": (-2, 5),
    "control_scale": (0, 2),
}
MAX_LINES = 64  # prompts of one batch
MAX_BYTES = 16 * 2**20  # of one image's file
MAX_BODY = 6 * MAX_BYTES  # bytes of one request: a few images in base64, with room
MAX_QUEUE = 100  # requests that wait; more are told that the queue is full
MAX_SESSIONS = 200  # open pages whose state is kept
