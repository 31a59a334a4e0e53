"""The nano world: procedural images of subjects, scenes and styles with exact ground truth.

Reading order: `tables` (nouns, scenes, styles, held-out lists), `sprites` (one subject's pixels), `scenes`
(backgrounds and styles), `spec` (an image as data, sampled and rendered), `text` (captions, edits, stories). The
samples of the training stages are in `kgcli.data.sources.world`.
"""

from kgcli.world.spec import Spec, Subject, draw_spec, render
from kgcli.world.tables import NOUNS, SCENES, STYLES

__all__ = ["NOUNS", "SCENES", "STYLES", "Spec", "Subject", "draw_spec", "render"]
