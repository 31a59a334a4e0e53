"""Records with a choice in them as fragments: what the multimodal model reads, None for an image."""

from __future__ import annotations

from kgcli.data.shards.records import Compositional, Edit

Fragments = tuple[str | None, ...]


def compositional_fragments(
    record: Compositional, *, drop_entity_text: bool, as_published: bool = False
) -> Fragments | None:
    """Return the caption with an image after each entity; with `drop_entity_text` it takes the place of the noun.

    The published loader fails on a caption that, its noun dropped, begins with an image, and skips the sample: None
    then, with `as_published`.
    """
    parts: list[str | None] = []
    end = 0
    for entity in record.entities:
        words = record.caption[end : entity.span[0] if drop_entity_text else entity.span[1]]
        if not words and as_published:
            return None
        parts += [words, None]
        end = entity.span[1]
    parts.append(record.caption[end:])
    return tuple(part for part in parts if part != "")


def edit_fragments(record: Edit, *, keep_caption: bool) -> Fragments:
    """Return the image before the edit and the instruction, the caption first where it is kept."""
    caption = (record.caption,) if keep_caption and record.caption else ()
    return (*caption, None, record.instruction)
