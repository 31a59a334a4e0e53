"""The nano world: a procedural place of subjects, scenes and styles in which every claim can be checked.

Reading order: `tables` (what exists, and who may see it), `sprites` (one subject's pixels), `scenes` (backgrounds
and styles), `spec` (a picture as data, drawn and rendered), `text` (captions, edits, stories), `samples` (what each
training stage sees).
"""

from kgcli.world.spec import Spec, Subject, draw_spec, render
from kgcli.world.tables import NOUNS, SCENES, STYLES

__all__ = ["NOUNS", "SCENES", "STYLES", "Spec", "Subject", "draw_spec", "render"]
