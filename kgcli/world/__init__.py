"""The nano world: procedural images of subjects, scenes and styles with exact ground truth.

Reading order: `tables` (nouns, scenes, styles, held-out lists), `looks` (an instance's colours and pattern), `spec` (an
image as data), `bank` and `subjects` (one subject's pixels), `scenes`, `styles`, `rendering` (a spec's image), `text`
(captions, edits, stories), `view` (what classifiers see). The samples of the training stages are in
`kgcli.data.sources.world`.
"""

from kgcli.world.rendering import render
from kgcli.world.spec import Spec, Subject, draw_spec
from kgcli.world.tables import NOUNS, SCENES, STYLES

__all__ = ["NOUNS", "SCENES", "STYLES", "Spec", "Subject", "draw_spec", "render"]
