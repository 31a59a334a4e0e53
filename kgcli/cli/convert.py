"""`kg convert`: a published checkpoint to a model folder, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kgcli.cli.parsing.command import App

app = App()

Given = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT", help="Published checkpoint file, transformers folder of Kosmos-2, or model folder."
    ),
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Model folder (or, with --to published, file) to write.")]
To = Annotated[
    str,
    typer.Option("--to", help="Target format: folder (a model folder) or published (a file for the published code)."),
]
Dictionary = Annotated[
    Path | None, typer.Option("--dict", metavar="FILE", help="dict.txt of the checkpoint; default: beside it.")
]
Spm = Annotated[
    Path | None,
    typer.Option("--spm", metavar="FILE", help="SentencePiece model of the checkpoint; default: beside it."),
]
Clip = Annotated[
    Path | None,
    typer.Option(
        "--clip", metavar="FILE", help="CLIP checkpoint, needed if CHECKPOINT has no vision tower; default: none."
    ),
]
Decoder = Annotated[
    str | None,
    typer.Option("--decoder", help="Image decoder: diffusers folder or Hub id; default: Stable Diffusion v1.5."),
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="Precision to write: float16, bfloat16 or float32; default: that of the file."),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="config.json with sizes that shapes do not determine (attention heads, ...); default: published sizes.",
    ),
]
ShardSize = Annotated[float, typer.Option("--shard-size", min=0.000001, help="Maximum size of one weight file, GB.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]


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
    """Convert a published KOSMOS-G checkpoint of any stage, or Kosmos-2 (stage 1), to a model folder.

    No code in the file is executed.

    With --to published, CHECKPOINT is a model folder and OUT the file to write.

    Example: kg convert checkpoint_final.pt kosmosg/
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
            raise UsageError(f"a published file holds weights only; leave out {', '.join(given)}")
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
