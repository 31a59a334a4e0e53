"""Every stage by name."""

from __future__ import annotations

from kgcli.training.stages.adapters import ControlNetStage, LoraStage
from kgcli.training.stages.decoder import ClipStage, UnetStage, VaeStage
from kgcli.training.stages.kosmosg import AlignStage, InstructStage, PretrainStage, Stage
from kgcli.training.stages.nano_evaluators import EvalClipStage, EvalDinoStage
from kgcli.training.stages.nano_recognisers import JudgeStage

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
