"""The layout of the page and the wiring of its buttons; what they do is in `kgcli.app.handlers`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr
from markupsafe import Markup

from kgcli.app.examples import example_item
from kgcli.app.limits import MAX_IMAGES, NONE, RANGES
from kgcli.app.listeners import answer, on_button, on_cancel, on_compare, on_replay, read_settings
from kgcli.app.widgets import make_examples, make_gallery, make_tray
from kgcli.config import SCHEDULERS, SIZE_MULTIPLE

if TYPE_CHECKING:
    from kgcli.app.handlers import Handlers

WORK = {"concurrency_id": "model", "concurrency_limit": 1}  # one request at a time uses the model
PRIVATE = "private"  # events of the page are not part of its API
EXAMPLE_PROMPTS = (
    ("cat in Minecraft", "a cat <image:-1> in Minecraft", ("cat.png",)),
    ("dog and robot", "<image:-1> and <image:-2> on the beach", ("dog.png", "robot.png")),
    ("fox in the snow", "<image:-1> in the snow", ("fox.png",)),
    ("words only", "a red robot in front of a brick wall", ()),
)
RESTORED = (
    *("prompt", "images", "negative_prompt", "seed", "steps", "guidance_scale", "width", "height", "scheduler"),
    *("lora", "lora_scale", "control", "control_scale", "control_images", "ready"),
)
HEAD = "<h1>kgcli</h1><p>Images from prompts of text and images. Model: {}.</p>"
API_NOTE = """
### From a program

The link **Use via API** below the page lists the endpoints `generate` and `edit` with
their parameters. Images travel as base64 inside the request, and a prompt names them by number.

```python
import base64, json
from gradio_client import Client

cat = base64.b64encode(open("cat.png", "rb").read()).decode()
images = [{"name": "cat.png", "data": cat}]
found = Client("http://127.0.0.1:7860").predict(
    "a cat <image:-1> in the snow",
    images,
    json.dumps({"seed": 1, "steps": 20}),
    api_name="/generate",
)
data = found[0]["src"].split(",")[1]  # a PNG that holds how it was made
open("out.png", "wb").write(base64.b64decode(data))
```
"""


class Page:
    """The page: inputs in tabs on the left, shared settings below them, results on the right.

    `fields` holds the components whose values a button sends, by the names that `Handlers` reads.
    """

    def __init__(self, handlers: Handlers) -> None:
        self.handlers = handlers
        self.fields: dict[str, Any] = {}  # of every request
        self.results: gr.HTML
        self.status: gr.HTML

    def build(self) -> gr.Blocks:
        """Return the page, ready to be launched."""
        model = self.handlers.folder.name
        with gr.Blocks(title="kgcli", analytics_enabled=False) as blocks:
            gr.HTML(Markup(HEAD).format(model), elem_id="kg-head", js_on_load=None)
            with gr.Row():
                with gr.Column(scale=5, min_width=320):
                    buttons = self._inputs()
                    self._settings()
                with gr.Column(scale=4, min_width=320):
                    self._outputs()
            self._wire(buttons)
            gr.api(self._generate_endpoint(), api_name="generate", **WORK)
            gr.api(self._edit_endpoint(), api_name="edit", **WORK)
        return blocks

    def _inputs(self) -> dict[str, gr.Button]:
        """Add the tabs; return their buttons by the name of the action."""
        buttons = {}
        with gr.Tabs():
            with gr.Tab("Generate"):
                buttons["generate"] = self._generate_tab()
            with gr.Tab("Edit"):
                buttons["edit"] = self._edit_tab()
            with gr.Tab("Batch"):
                self.lines = gr.Textbox(
                    label="Prompts, one a line",
                    info="Lines may name the images of the tab Generate: <image:-1>.",
                    lines=6,
                    placeholder="a cat <image:-1> in the snow\na cat <image:-1> on the beach",
                    elem_id="kg-lines",
                )
                buttons["batch"] = gr.Button("Generate all", variant="primary", elem_id="kg-batch")
            with gr.Tab("Compare"):
                buttons["compare"] = self._compare_tab()
            with gr.Tab("ControlNet and LoRA"):
                self._adapters_tab()
            with gr.Tab("API"):
                gr.Markdown(API_NOTE)
        return buttons

    def _generate_tab(self) -> gr.Button:
        self.fields["prompt"] = gr.Textbox(
            label="Prompt",
            info="Click the number of an image to write it into the prompt, as <image:-1>.",
            lines=2,
            placeholder="a cat <image:-1> in the snow",
            elem_id="kg-prompt",
        )
        self.fields["images"] = make_tray(
            "main",
            most=self.handlers.most_images,
            title="Images of the prompt",
            hint="Add images: drop, paste or click",
            prompt="#kg-prompt",
            weights=True,
        )
        make_examples("main")
        with gr.Row(elem_classes="kg-chips"):
            self.chips = [gr.Button(name, size="sm", min_width=90) for name, _, _ in EXAMPLE_PROMPTS]
        return gr.Button("Generate", variant="primary", elem_id="kg-generate")

    def _edit_tab(self) -> gr.Button:
        self.edited = make_tray(
            "edit", most=1, title="Image to edit", hint="Add the image to edit: drop, paste or click"
        )
        self.instruction = gr.Textbox(label="Instruction", placeholder="add a hat", elem_id="kg-instruction")
        return gr.Button("Edit", variant="primary", elem_id="kg-edit")

    def _compare_tab(self) -> gr.Button:
        gr.Markdown(
            "The prompt and images of the tab Generate with two settings and the same seed; seed, size and negative "
            "prompt are those under Settings."
        )
        self.sides: list[dict[str, Any]] = []
        defaults = self.handlers.folder.cfg.generation
        with gr.Row():
            for side, scale in (("A", defaults.guidance_scale), ("B", 1.0)):
                with gr.Column(min_width=140):
                    self.sides.append(
                        {
                            "steps": _steps(defaults.num_inference_steps, f"Steps, {side}"),
                            "guidance_scale": _guidance(scale, f"Guidance scale, {side}"),
                            "scheduler": _scheduler(defaults.scheduler, f"Scheduler, {side}"),
                            "lora": self._lora(f"LoRA, {side}"),
                        }
                    )
        return gr.Button("Compare", variant="primary", elem_id="kg-compare")

    def _adapters_tab(self) -> None:
        gr.Markdown("Used by Generate, Edit and Batch. The owner of this page adds more with `kg app --lora FILE`.")
        self.fields["lora"] = self._lora("LoRA", elem_id="kg-lora")
        self.fields["lora_scale"] = gr.Slider(*RANGES["lora_scale"], 1.0, step=0.05, label="Scale of the LoRA")
        controls = [NONE, *self.handlers.offer.controls]
        self.fields["control"] = gr.Dropdown(controls, value=NONE, label="ControlNet", elem_id="kg-control")
        scales = {"step": 0.05, "label": "Scale of the ControlNet"}
        self.fields["control_scale"] = gr.Slider(*RANGES["control_scale"], 1.0, **scales)
        self.fields["control_images"] = make_tray(
            "control", most=1, title="Image of the ControlNet", hint="Add the image whose shape to follow", compact=True
        )
        self.fields["ready"] = gr.Checkbox(False, label="The image is a ready map")

    def _lora(self, label: str, **options: Any) -> gr.Dropdown:
        return gr.Dropdown([NONE, *self.handlers.offer.loras], value=NONE, label=label, **options)

    def _settings(self) -> None:
        defaults = self.handlers.folder.cfg.generation
        with gr.Accordion("Settings", open=False, elem_id="kg-settings"), gr.Group():
            with gr.Row():
                self.fields["seed"] = gr.Number(
                    -1, precision=0, label="Seed (-1: random)", min_width=120, elem_id="kg-seed"
                )
                self.fields["num_images"] = gr.Slider(1, MAX_IMAGES, 1, step=1, label="Images", min_width=120)
            with gr.Row():
                self.fields["steps"] = _steps(defaults.num_inference_steps, "Steps")
                self.fields["guidance_scale"] = _guidance(defaults.guidance_scale, "Guidance scale")
            with gr.Row():
                sides = {"step": SIZE_MULTIPLE, "min_width": 120}
                self.fields["width"] = gr.Slider(*RANGES["width"], defaults.width, label="Width", **sides)
                self.fields["height"] = gr.Slider(*RANGES["height"], defaults.height, label="Height", **sides)
            self.fields["scheduler"] = _scheduler(defaults.scheduler, "Scheduler")
            self.fields["negative_prompt"] = gr.Textbox(label="Negative prompt", placeholder="text to guide away from")

    def _outputs(self) -> None:
        with gr.Row():
            self.status = gr.HTML("", elem_id="kg-status", elem_classes="kg-status", js_on_load=None)
            self.cancel = gr.Button("Cancel", size="sm", min_width=80, scale=0, elem_id="kg-cancel")
        self.results = make_gallery("Images appear here. Drag one into a tray to use it.")
        self.replay = make_tray(
            "replay",
            most=1,
            title="Replay",
            hint="Drop an image made here to restore its prompt, seed and settings",
            crops=False,
            compact=True,
        )

    def _wire(self, buttons: dict[str, gr.Button]) -> None:
        outputs = [self.results, self.status]
        both = {**self.fields, "lines": self.lines}
        edited = {**self.fields, "images": self.edited, "instruction": self.instruction}
        for name, sent in (("generate", self.fields), ("edit", edited), ("batch", both)):
            action = on_button(getattr(self.handlers, name), list(sent))
            buttons[name].click(action, list(sent.values()), outputs, api_visibility=PRIVATE, **WORK)
        self.fields["prompt"].submit(
            on_button(self.handlers.generate, list(self.fields)),
            list(self.fields.values()),
            outputs,
            api_visibility=PRIVATE,
            **WORK,
        )
        sides = [component for side in self.sides for component in side.values()]
        compare = on_compare(self.handlers, list(self.fields), list(self.sides[0]))
        buttons["compare"].click(compare, [*self.fields.values(), *sides], outputs, api_visibility=PRIVATE, **WORK)
        self.cancel.click(on_cancel(self.handlers), None, self.status, queue=False, api_visibility=PRIVATE)
        self._wire_fillers()

    def _wire_fillers(self) -> None:
        """Wire what fills fields: the example prompts, and an image dropped for its settings."""
        filled = [self.fields["prompt"], self.fields["images"]]
        for chip, (_, prompt, images) in zip(self.chips, EXAMPLE_PROMPTS, strict=True):
            fill = partial(_example, prompt, images)
            chip.click(fill, None, filled, queue=False, api_visibility=PRIVATE)
        names = [name for name in RESTORED if name in self.fields]
        trays = [self.fields["images"], self.edited, self.fields["control_images"]]
        self.replay.change(
            on_replay(self.handlers, names),
            [self.replay, *trays],
            [self.status, *(self.fields[name] for name in names)],
            queue=False,
            api_visibility=PRIVATE,
        )

    def _generate_endpoint(self) -> Callable[..., list[dict[str, Any]]]:
        def generate(
            prompt: str, images: list[dict[str, Any]] | None = None, settings: str = "{}"
        ) -> list[dict[str, Any]]:
            """Generate images from a prompt.

            Args:
                prompt: text that names the images by number: <image:-1>
                images: {"name", "data" (base64), "weight", "crop"} each
                settings: JSON object of seed, num_images, steps, guidance_scale, width, height, scheduler,
                    negative_prompt, lora, lora_scale
            """
            return answer(self.handlers, {**read_settings(settings), "prompt": prompt, "images": images or []})

        return generate

    def _edit_endpoint(self) -> Callable[..., list[dict[str, Any]]]:
        def edit(image: dict[str, Any], instruction: str, settings: str = "{}") -> list[dict[str, Any]]:
            """Edit an image by an instruction; image and settings as of /generate."""
            return answer(
                self.handlers, {**read_settings(settings), "images": [image], "instruction": instruction or " "}
            )

        return edit


def _steps(value: int | None, label: str) -> gr.Slider:
    return gr.Slider(*RANGES["steps"], value, step=1, label=label, min_width=120)


def _guidance(value: float | None, label: str) -> gr.Slider:
    return gr.Slider(*RANGES["guidance_scale"], value, step=0.5, label=label, min_width=120)


def _scheduler(value: str | None, label: str) -> gr.Dropdown:
    return gr.Dropdown(list(SCHEDULERS), value=value, label=label)


def _example(prompt: str, images: tuple[str, ...]) -> tuple[str, list[dict[str, Any]]]:
    return prompt, [example_item(name) for name in images]
