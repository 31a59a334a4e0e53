"""A command killed at each of its file operations in turn: whatever is left, running it again gives the same files.

Run: python tests/crash_points.py START WORK COMMAND...     (COMMAND is that of kg; it runs in copies of START in WORK)

The process is forked for each run, so that libraries are imported once, and ended without any clean-up (as by kill -9)
just before the operation. Prints one JSON object: how many operations there are and what differed after which.
"""

import json
import os
import shutil
import sys
import traceback
from pathlib import Path

CHANGES = ("os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CLOCKS = ("samples_per_second", "cpu_seconds")
KILLED, DONE, FAILED = 9, 0, 1


def main(start: str, work: str, *command: str) -> None:
    import kgcli.inference.model
    import kgcli.training.loop  # noqa: F401 (imported once, for all forks)

    reference = Path(work, "reference")
    shutil.copytree(start, reference, symlinks=True)
    assert run(command, reference) == DONE
    expected = files_of(reference)
    number, different = 0, {}
    while True:
        folder = Path(work, "killed")
        shutil.copytree(start, folder, symlinks=True)
        status = run(command, folder, kill_at=number)
        if status == DONE:
            break
        again = run(command, folder)
        found = files_of(folder)
        names = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        if again != DONE or status != KILLED or names:
            different[number] = [status, again, *names]
        shutil.rmtree(folder)
        number += 1
    print(json.dumps({"operations": number, "files": len(expected), "different": different}))


def run(command, folder, kill_at=None) -> int:
    """Run kg in a fork; returns how it ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if kill_at is not None:
        kill_before(kill_at, str(folder.parent))
    try:
        from kgcli.cli.app import run as kg

        code = kg(list(command))
    except BaseException:
        traceback.print_exc()
        code = FAILED
    os._exit(DONE if code == 0 else FAILED)


def kill_before(number: int, root: str) -> None:
    """End this process just before the change of that number below a folder."""
    seen = 0

    def look(event, args):
        nonlocal seen
        if event == "open":
            path, _, flags = args
            changes = isinstance(flags, int) and flags & WRITING and isinstance(path, str | bytes | os.PathLike)
        else:
            changes = event in CHANGES
            path = args[0] if changes else None
        if changes and not isinstance(path, int) and is_below(path, root):
            if seen == number:
                os._exit(KILLED)
            seen += 1

    sys.addaudithook(look)


def is_below(path, root: str) -> bool:
    return path is not None and os.path.abspath(os.fsdecode(path)).startswith(root)


def files_of(folder: Path) -> dict[str, str]:
    """The content of all files but locks, leftovers, caches and what says the time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and "tensorboard" not in name and not name.startswith("cache"):
            found[name] = content_of(path)
    return found


def content_of(path: Path) -> str:
    if path.name != "metrics.jsonl":
        return path.read_bytes().hex()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return json.dumps([{name: value for name, value in row.items() if name not in CLOCKS} for row in rows])


if __name__ == "__main__":
    main(*sys.argv[1:])
