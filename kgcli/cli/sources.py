"""The text of `kg models ls`."""

from __future__ import annotations

import json

from kgcli.weights.catalogue import list_sources


def sources_text(*, as_json: bool) -> str:
    """Format the catalogue for people, or as one JSON object per source."""
    rows = list_sources()
    if as_json:
        return "".join(json.dumps(row) + "\n" for row in rows)
    lines = []
    for row in rows:
        kind = "official" if row["official"] else "unofficial mirror"
        lines += [
            f"{row['name']}: {row['stage']}",
            f"  source   {row['repository']}, {row['file']}, {row['size'] / 1e9:.2f} GB, {kind}",
            f"  sha256   {row['sha256']}",
            f"  licence  {row['licence']}",
            f"  here     {row['here'] or _command(row)}",
        ]
    return "\n".join(lines) + "\n"


def _command(row: dict[str, object]) -> str:
    more = "" if row["is_first"] else f" --from {row['repository']}"
    accept = "" if row["official"] else " --accept"
    return f"no; `kg models pull {row['name']}{more}{accept}` fetches it"
