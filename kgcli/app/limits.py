"""Limits of the page: what one request may hold and cost."""

from __future__ import annotations

NONE = "none"  # no LoRA, no ControlNet
MAX_IMAGES = 8  # of one prompt, and of one click
MAX_STEPS = 200
MAX_SIDE = 1024  # pixels
MAX_LINES = 64  # prompts of one batch
MAX_BYTES = 16 * 2**20  # of one image's file
MAX_BODY = 6 * MAX_BYTES  # bytes of one request: a few images in base64, with room
MAX_QUEUE = 100  # requests that wait; more are told that the queue is full
MAX_SESSIONS = 200  # open pages whose state is kept
