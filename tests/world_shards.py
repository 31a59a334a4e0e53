"""The nano world written as shards, sample for sample, for tests."""

from kgcli.data.prompt import ImageRef, Prompt
from kgcli.data.shards.records import Text, Written
from kgcli.data.shards.write import Row, ShardWriter, encode_image


def row_of(key, sample, size):
    """A sample of any source as a row that gives it back exactly."""
    images, parts = {}, []
    for fragment in sample.fragments:
        if fragment is None:
            member = f"{len(images)}.png"
            images[member] = encode_image(sample.images[len(images)])
            parts.append(ImageRef(path=member))
        else:
            parts.append(fragment)
    if sample.target is None and not images:
        return Row(key, Text(text="".join(parts), caption=sample.caption))
    masks = []
    if sample.target is not None:
        target = sample.render(size)
        for mask in target.masks:
            masks.append(f"{len(images)}.png")
            images[masks[-1]] = encode_image(mask)
        images["png"] = encode_image(target.image)
    prompt = Prompt(tuple(parts))
    assert tuple(Prompt.parse(prompt.format()).fragments) == sample.fragments
    target = "png" if sample.target is not None else None
    record = Written(prompt=prompt.format(), target=target, caption=sample.caption, masks=tuple(masks))
    return Row(key, record, images)


def write_world(folder, source, num, size, max_rows=1000):
    """Write the first samples of a source as shards, in order."""
    with ShardWriter(folder, "world", max_rows=max_rows) as writer:
        for number in range(num):
            writer.add(row_of(f"{number:06d}", source.sample(number), size))
    return folder
