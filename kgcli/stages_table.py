"""Every stage by name."""

from __future__ import annotations

from kgcli.stages import AlignStage, InstructStage, PretrainStage, Stage
from kgcli.stages_adapters import ControlNetStage, LoraStage
from kgcli.stages_base import ClipStage, UnetStage, VaeStage
from kgcli.stages_evaluators import EvalClipStage, EvalDinoStage
from kgcli.stages_judge import JudgeStage

STAGES: dict[str, type[Stage]] = {
    "vae": VaeStage,
    "clip": ClipStage,
    "unet": UnetStage,
    "pretrain": PretrainStage,
    "align": AlignStage,
    "instruct": InstructStage,
    "judge": JudgeStage,
    "eval_clip": EvalClipStage,
    "eval_dino": EvalDinoStage,
    "controlnet": ControlNetStage,
    "lora": LoraStage,
}
