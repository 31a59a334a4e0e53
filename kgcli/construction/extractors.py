"""Entities of captions by language models: an answer with commas, as published, or JSON in the caption's words."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from transformers import AutoModelForCausalLM, AutoTokenizer

from kgcli.construction.given import place_entities
from kgcli.construction.models import JsonGrammar, load_model, load_part
from kgcli.construction.stage import Draft, Options, Place

# Alpaca's and Dolly's form of a request, which MPT-7B-Instruct was trained on.
FORM = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{caption}\n\n### Response:\n"
)
INSTRUCTION = (
    "List the objects in the foreground of this caption, separated by commas. Give nouns alone, without adjectives, "
    "and leave out the background, the place and the surroundings."
)
MOST_WORDS = 3  # of an entity that JSON may name


class ListExtractorOptions(Options):
    """A model that answers with a list; the sampling is the published script's."""

    model: str = "mosaicml/mpt-7b-instruct"  # folder or Hub id
    instruction: str = INSTRUCTION
    max_new_tokens: int = Field(default=10, ge=1)
    temperature: float = Field(default=1.0, ge=0)  # 0: the likeliest words
    top_k: int = Field(default=50, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    seed: int = Field(default=0, ge=0)
    at_most: int = Field(default=8, ge=1)


class ListExtractor:
    """Entities by the published method: MPT-7B-Instruct's answer, cut at commas; one that goes on to # is dropped."""

    options_type = ListExtractorOptions

    def __init__(self, options: ListExtractorOptions, place: Place) -> None:
        folder = place.folders[options.model]
        self.options, self.device = options, place.device
        self.tokenizer = load_part(AutoTokenizer.from_pretrained, folder)
        self.model = load_model(AutoModelForCausalLM.from_pretrained, folder, place.device)

    def apply(self, drafts: Sequence[Draft]) -> None:
        """Find the entities of each caption."""
        for draft in drafts:
            answer = self._answer(draft)
            if "#" in answer:
                draft.drop("the answer goes on")
                continue
            place_entities(draft, parse_list(answer, draft.caption), self.options.at_most)

    @torch.inference_mode()
    def _answer(self, draft: Draft) -> str:
        options = self.options
        prompt = FORM.format(instruction=options.instruction, caption=draft.caption)
        inputs = self.tokenizer(prompt, return_tensors="pt").to(self.device)
        sampling: dict[str, Any] = {"do_sample": False}
        if options.temperature > 0:
            sampling = {"do_sample": True, "temperature": options.temperature}
            sampling |= {"top_k": options.top_k, "top_p": options.top_p}
        with torch.random.fork_rng():
            torch.manual_seed(draft.seed(options.seed))  # generate() takes no generator
            ids = self.model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=options.max_new_tokens,
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
                **sampling,
            )
        return str(self.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


class JsonExtractorOptions(Options):
    """A model that answers in JSON."""

    model: str = "Qwen/Qwen3-4B-Instruct-2507"  # folder or Hub id of an instruct model
    instruction: str = INSTRUCTION
    max_new_tokens: int = Field(default=128, ge=1)
    at_most: int = Field(default=8, ge=1)
    constrained: bool = True  # bind the answer to the caption's words, where xgrammar is installed


class JsonExtractor:
    """Entities by any instruct model, as a JSON object; with xgrammar it can say nothing but words of the caption."""

    options_type = JsonExtractorOptions

    def __init__(self, options: JsonExtractorOptions, place: Place) -> None:
        folder = place.folders[options.model]
        self.options, self.device = options, place.device
        self.tokenizer = load_part(AutoTokenizer.from_pretrained, folder)
        self.model = load_model(AutoModelForCausalLM.from_pretrained, folder, place.device)
        self._grammar: JsonGrammar | None = None
        if options.constrained and JsonGrammar.is_installed():
            self._grammar = JsonGrammar(self.tokenizer, self.model.config.vocab_size)

    def apply(self, drafts: Sequence[Draft]) -> None:
        """Find the entities of each caption."""
        for draft in drafts:
            found = parse_json_list(self._answer(draft))
            if found is None:
                draft.drop("the answer is no JSON")
                continue
            place_entities(draft, found, self.options.at_most)

    @torch.inference_mode()
    def _answer(self, draft: Draft) -> str:
        inputs = self._inputs(draft.caption)
        schema = schema_of(draft.caption, self.options.at_most)
        bound = [] if self._grammar is None else [self._grammar.processor(schema)]
        ids = self.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=self.options.max_new_tokens,
            do_sample=False,
            logits_processor=bound,
            pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
        )
        return str(self.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    def _inputs(self, caption: str) -> Any:
        asked = f'{self.options.instruction} Answer as JSON: {{"entities": ["noun", ...]}}.'
        if not self.tokenizer.chat_template:
            prompt = FORM.format(instruction=asked, caption=caption)
            return self.tokenizer(prompt, return_tensors="pt").to(self.device)
        message = {"role": "user", "content": f"{asked}\n\nCaption: {caption}"}
        return self.tokenizer.apply_chat_template(
            [message], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).to(self.device)


def parse_list(answer: str, caption: str) -> list[str]:
    """Return the names of an answer with commas that are in the caption."""
    names = [name.replace("\t", "").replace("\n", "").strip() for name in answer.split(",")]
    return [name for name in names if name and name in caption]


def parse_json_list(answer: str) -> list[str] | None:
    """Return the entities of the first JSON object in an answer, None without one."""
    found = re.search(r"\{.*?\}", answer, re.DOTALL)
    try:
        value = json.loads(found.group()) if found else None
    except ValueError:
        return None
    names = value.get("entities") if isinstance(value, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return [name.strip() for name in names]


def schema_of(caption: str, at_most: int) -> dict[str, Any]:
    """Return the JSON schema of an answer whose entities are up to three neighbouring words of the caption."""
    words = re.findall(r"[^\W_]+(?:['-][^\W_]+)*", caption)
    runs = {
        run
        for start in range(len(words))
        for stop in range(start + 1, min(start + MOST_WORDS, len(words)) + 1)
        if (run := " ".join(words[start:stop])) in caption
    }
    entities = {"type": "array", "items": {"type": "string", "enum": sorted(runs) or [""]}, "minItems": 1}
    return {
        "type": "object",
        "properties": {"entities": {**entities, "maxItems": at_most}},
        "required": ["entities"],
        "additionalProperties": False,
    }
