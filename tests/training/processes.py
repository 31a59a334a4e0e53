"""A function on several processes that train together, forked so that libraries are imported once."""

import json
import os
import socket
import tempfile
import time
import traceback
from pathlib import Path


def on_processes(num, function, *args):
    """Call a function on `num` processes, as torchrun would start them; return its results by rank.

    A result is anything that JSON holds; a process that fails makes this fail with its traceback.
    """
    with tempfile.TemporaryDirectory() as folder:
        children = start(num, Path(folder), function, *args)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        logs = [path.read_text() for path in sorted(Path(folder).glob("*.error"))]
        assert not any(codes), f"exit codes {codes}\n" + "\n".join(logs)
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(num)]


def start(num, folder, function, *args):
    """Start the processes, which write `RANK.json` or `RANK.error` into a folder; return their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(num):
        child = os.fork()
        if not child:
            _run(num, rank, port, folder, function, args)
        children.append(child)
    return children


def _run(num, rank, port, folder, function, args):
    code = 1
    try:
        from accelerate.state import AcceleratorState, GradientState, PartialState

        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        if num > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num), "MASTER_PORT": port}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": str(num)}
        (folder / f"{rank}.json").write_text(json.dumps(function(*args)))
        _wait_for_others(folder, num)
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        (folder / f"{rank}.error").write_text(f"rank {rank}: {traceback.format_exc()}")
    finally:
        os._exit(code)


def _wait_for_others(folder, num):
    """Wait until all processes have a result or an error: one that still connects needs the store of the first."""
    end = time.monotonic() + 20
    while time.monotonic() < end and len([*folder.glob("*.json"), *folder.glob("*.error")]) < num:
        time.sleep(0.05)
