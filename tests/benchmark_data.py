"""Folders shaped like the data of benchmarks, with small pictures, and a method of a user's own."""

import json

from PIL import Image

from kgcli.evaluation.benchmarks.dreambench_data import LIVE_PROMPTS, OBJECT_PROMPTS, SHARED_PROMPTS, SUBJECTS

SIDE = 16  # pixels
OWN_METHOD = '''
"""A method of a user's own: one colour for each picture; each subject is learnt once."""

import time

from PIL import Image


class Colour:
    name = "colour"

    def __init__(self, options):
        self.options = options

    def facts(self):
        return {"name": self.name, "extra": [list(pair) for pair in self.options.extra]}

    def prepare(self, subject, items, data, folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "learnt").exists():
            with open(folder.parent / "log", "a") as log:
                log.write(f"{subject}\\n")
            (folder / "learnt").write_text(items[0].inputs[0])

    def draw(self, items, data, folder):
        time.sleep(0.01)  # so that it can be killed at work
        assert (folder / "learnt").read_text() == items[0].inputs[0]
        return [Image.new("RGB", (8, 8), (item.seed % 256, item.prompt, item.image)) for item in items]
'''


def write_dreambench(folder):
    """30 subjects, 158 photos, the file of prompts."""
    from kgcli.evaluation.benchmarks.dreambench_data import input_photo

    rest = 158 - 4 * len(SUBJECTS)
    for index, name in enumerate(SUBJECTS):
        (folder / name).mkdir(parents=True)
        num = 4 + rest // len(SUBJECTS) + (index < rest % len(SUBJECTS))
        number = int(input_photo(name)[-6:-4])
        numbers = [number, *(other for other in range(num) if other != number)][:num]
        for photo in numbers:
            colour = (index * 8, photo * 40, 255 - index * 8)
            Image.new("RGB", (SIDE, SIDE), colour).save(folder / name / f"{photo:02d}.jpg")
    (folder / "prompts_and_classes.txt").write_text(prompts_file())
    return folder


def prompts_file():
    """The text of prompts_and_classes.txt."""
    lines = ["Classes", "", "subject_name,class", *(f"{name},{noun}" for name, (noun, _) in SUBJECTS.items()), ""]
    for title, own in (("Object", OBJECT_PROMPTS), ("Live Subject", LIVE_PROMPTS)):
        texts = [f"a {{0}} {{1}} {scene}" for scene in SHARED_PROMPTS + own]
        texts += [f"a {word} {{0}} {{1}}" for word in ("red", "purple", "shiny", "wet", "cube shaped")]
        lines += [f"{title} Prompts", "", "prompt_list = ["]
        lines += [f"'{text}'.format(unique_token, class_token)," for text in texts] + ["]", ""]
    return "\n".join(lines)


def write_annotations(folder, num):
    """COCO's file of captions with `num` of them, three for each picture."""
    path = folder / "annotations" / "captions_val2014.json"
    path.parent.mkdir(parents=True)
    annotations = [{"image_id": 100 + i // 3, "id": i, "caption": f"a  cat number {i}\n"} for i in range(num)]
    path.write_text(json.dumps({"annotations": annotations}))
    return folder
