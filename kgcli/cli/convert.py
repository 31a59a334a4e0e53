"""`kg convert`: a published checkpoint made a model folder, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)

Given = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="Published file, transformers folder of Kosmos-2, or model folder.")
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Model folder to write, or file.")]
To = Annotated[str, typer.Option("--to", help="folder (ours), or published (a file for the published code).")]
Dictionary = Annotated[Path | None, typer.Option("--dict", help="The checkpoint's dict.txt.")]
Spm = Annotated[Path | None, typer.Option("--spm", help="The checkpoint's SentencePiece model.")]
Clip = Annotated[Path | None, typer.Option("--clip", help="CLIP file, for a checkpoint without a vision tower.")]
Decoder = Annotated[str | None, typer.Option("--decoder", help="Diffusers folder or Hub id; default: SD v1.5's.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float16, bfloat16, float32; default: the file's.")]
Config = Annotated[Path | None, typer.Option("--config", help="A config.json, for sizes the shapes do not tell.")]
ShardSize = Annotated[float, typer.Option("--shard-size", min=0.000001, help="Gigabytes of one weight file.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a model that is there.")]


@app.command()
def convert(
    checkpoint: Given,
    out: Out,
    to: To = "folder",
    dictionary: Dictionary = None,
    spm: Spm = None,
    clip: Clip = None,
    decoder: Decoder = None,
    dtype: Dtype = None,
    config: Config = None,
    shard_size: ShardSize = 1.0,
    overwrite: Overwrite = False,
) -> None:
    """Make a model folder of a published KOSMOS-G checkpoint of any stage, or of Kosmos-2, which is stage 1.

    Nothing in the file is ever run.

    With --to published, CHECKPOINT is a model folder and OUT the file to write.
    """
    from kgcli.cli.logs import set_up_logs
    from kgcli.errors import UsageError

    set_up_logs()
    if to not in ("folder", "published"):
        raise UsageError(f"--to is {to}; it must be folder or published")
    if to == "published":
        useless = {"dict": dictionary, "spm": spm, "clip": clip, "decoder": decoder, "config": config}
        given = [f"--{name}" for name, value in useless.items() if value is not None]
        if given:
            raise UsageError(f"a published file holds weights alone; leave out {', '.join(given)}")
    from kgcli.weights.published import convert as conversion  # torch loads here

    if to == "published":
        print(conversion.to_published(checkpoint, out, dtype=dtype, overwrite=overwrite))
    else:
        source = conversion.open_checked(checkpoint, out, clip=clip, config=config, overwrite=overwrite)
        print(source)
        conversion.to_folder(
            source,
            out,
            dictionary=dictionary,
            sentencepiece=spm,
            decoder=decoder,
            dtype=dtype,
            overwrite=overwrite,
            shard_size=int(shard_size * 1e9),
        )
    print(out)
