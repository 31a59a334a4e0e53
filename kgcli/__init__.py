"""KOSMOS-G: generate images from interleaved text and images, as a library and as the command `kg`.

import kgcli
model = kgcli.load()  # the small model that ships with the package
model.generate("a cat <image:cat.png> in Minecraft", seed=0)[0].save("out.png")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kgcli.version import __version__

__all__ = ["KosmosGPipeline", "Prompt", "__version__", "load"]

if TYPE_CHECKING:
    from kgcli.data.prompt import Prompt
    from kgcli.engine import load
    from kgcli.inference.pipeline import KosmosGPipeline


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import kgcli` stays cheap."""
    if name == "Prompt":
        from kgcli.data.prompt import Prompt

        return Prompt
    if name == "KosmosGPipeline":
        from kgcli.inference.pipeline import KosmosGPipeline

        return KosmosGPipeline
    if name == "load":
        from kgcli.engine import load

        return load
    raise AttributeError(f"module 'kgcli' has no attribute {name!r}")
