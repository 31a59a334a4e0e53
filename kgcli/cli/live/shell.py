"""`kg shell`: prompts line by line, with a model that stays loaded."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kgcli.cli.failure import show
from kgcli.cli.logs import set_up_logs
from kgcli.cli.options import GenerateFlags, takes_flags
from kgcli.cli.parsing.command import App
from kgcli.cli.plan import Line, Plan, check_entry, open_session, plan_entry
from kgcli.errors import KgError, PartialBatchError, UsageError
from kgcli.files import make_folder
from kgcli.inference.request import edit_prompt
from kgcli.reading import parse_json
from kgcli.runtime import user_cache

if TYPE_CHECKING:
    from kgcli.inference.model import Model

app = App()
PROMPT = "kg> "
HISTORY_LINES = 1000
SHORT = {"-n": "num_images", "-s": "seed", "-o": "out", "-g": "guidance_scale", "-W": "width", "-H": "height"}
LONG = {"image": "images", "cfg_scale": "guidance_scale"}  # names that differ from the fields of `Line`
LISTS = ("images", "seed")  # given several times
_FLAG = re.compile(r"(?:^|(?<=\s))(--[a-z][a-z_-]*|-[nsogWH])(?=[\s=]|$)")
HELP = """\
A line is a prompt, with settings for it alone after it:
  a cat <image:cat.png> in the snow --steps 20 -s 7 -o snow.png
  a cat <image:-1> in the snow --image cat.png
or a JSON object as in a batch file: {"prompt": "a cat", "seed": 7}
Settings: --steps --guidance-scale (-g) --guidance-rescale --width (-W) --height (-H) --scheduler
  --negative-prompt --seed (-s) --num-images (-n) --image --out (-o)
Commands:
  :edit IMAGE INSTRUCTION   edit an image, with settings as above
  :set                      show what is set for all lines
  :set NAME VALUE           set it for all following lines, such as :set steps 20
  :unset NAME               go back to the default
  :help  :quit              this text; leave (or Ctrl-D)
Ctrl-C stops the image under way."""


@dataclass
class Session:
    """A loaded model, and what is set for all lines."""

    plan: Plan
    flags: GenerateFlags
    model: Model
    defaults: dict[str, Any] = field(default_factory=dict)

    def answer(self, line: str) -> bool:
        """Carry out one line; returns False if it asks to leave.

        Raises: KgError.
        """
        command, _, rest = line.strip().partition(" ")
        if command in (":quit", ":q", ":exit"):
            return False
        if command == ":help":
            print(HELP, file=sys.stderr)
        elif command == ":set":
            self._set(rest.strip())
        elif command == ":unset":
            if self.defaults.pop(_field(rest.strip()), None) is None:
                raise UsageError(f"{rest.strip() or 'nothing'} is not set; :set shows what is")
        elif command == ":edit":
            image, _, instruction = rest.strip().partition(" ")
            if not instruction.strip():
                raise UsageError("write :edit IMAGE INSTRUCTION")
            entry = parse_line(instruction)
            if not isinstance(entry.get("prompt"), str):
                raise UsageError('the instruction has no text; write :edit IMAGE {"prompt": "...", ...}')
            self._generate({**entry, "prompt": edit_prompt(image, entry["prompt"])})
        elif command.startswith(":"):
            raise UsageError(f"there is no command {command}; :help lists all")
        elif command:
            self._generate(parse_line(line))
        return True

    def _set(self, text: str) -> None:
        if not text:
            for name, value in self.defaults.items():
                print(f"{name} {value}", file=sys.stderr)
            return
        name, _, value = text.replace("=", " ", 1).partition(" ")
        name = _field(name)
        if not value.strip() or name in ("prompt", "images"):
            raise UsageError(f"write :set NAME VALUE; :help lists the names (not {name})")
        changed = {**self.defaults, name: value.strip()}
        check_entry(self.plan, self.flags, {"prompt": "", **changed})
        self.defaults = changed

    def _generate(self, entry: dict[str, Any]) -> None:
        """Generate, write and print the images of a line."""
        import kgcli.engine as engine
        from kgcli.cli.generate import progress, write_job

        plan = plan_entry(self.plan, self.flags, {**self.defaults, **entry})
        if not plan.jobs:
            return
        if not self.flags.quiet and self.flags.seed is None and "seed" not in {**self.defaults, **entry}:
            print(f"seed {plan.jobs[0].request.seed}", file=sys.stderr)
        with progress(plan.jobs, self.flags) as on_step:
            images = engine.generate(self.model, [job.request for job in plan.jobs], on_step, self.flags.batch_size)
            for job, (request, image) in zip(plan.jobs, images, strict=True):
                write_job(job, request, image, self.model, self.flags)


def parse_line(line: str) -> dict[str, Any]:
    """Return the fields of `Line` of a prompt with settings behind it, or of a JSON object.

    Raises: UsageError.

    Example:
        >>> parse_line("a cat --steps 4 -s 1 -s 2")
        {'prompt': 'a cat', 'num_inference_steps': '4', 'seed': ['1', '2']}
    """
    if line.lstrip().startswith("{"):
        entry = parse_json(line, name="the line", error=UsageError)
        if not isinstance(entry, dict):
            raise UsageError('not a JSON object; write {"prompt": "..."}')
        return entry
    prompt, *pairs = _FLAG.split(line.strip())
    entry = {"prompt": prompt.strip()}
    for flag, value in zip(pairs[::2], pairs[1::2], strict=True):
        name, value = _field(flag), value.strip().removeprefix("=").strip()
        if not value:
            raise UsageError(f"{flag} needs a value")
        if name in LISTS:
            entry.setdefault(name, []).append(value)
        elif name in entry:
            raise UsageError(f"{flag} is given twice, or {name} and the prompt are one")
        else:
            entry[name] = value
    return entry


def _field(flag: str) -> str:
    """Return the field of `Line` of a setting. Raises: UsageError."""
    bare = flag.removeprefix("--").replace("-", "_") if flag not in SHORT else SHORT[flag]
    name = {"steps": "num_inference_steps", "num_steps": "num_inference_steps", **LONG}.get(bare, bare)
    if name not in Line.model_fields:
        raise UsageError(f"there is no setting {flag}; :help lists all")
    return name


@takes_flags(GenerateFlags, without=("images", "batch", "from_", "allow_download"))
def shell(*, flags: GenerateFlags) -> None:
    """Read prompts line by line and generate each at once: the model is loaded only once.

    Settings may follow a prompt: a cat in the snow --steps 20 -s 7. `:help` lists them, Ctrl-D leaves. The options
    are the defaults of all lines.

    Example: kg shell --steps 20
    """
    from kgcli.cli.generate import load

    set_up_logs(quiet=flags.quiet, verbose=flags.verbose, offline=flags.offline)
    plan = open_session(flags)
    session = Session(plan, flags, load(plan, flags))
    if isinstance(sys.stdin, io.TextIOWrapper):  # bytes that are not UTF-8 are refused in their line, not here
        sys.stdin.reconfigure(errors="surrogateescape")
    interactive = sys.stdin.isatty()
    if interactive and not flags.quiet:
        print(f"{plan.model.name} is ready; :help explains, Ctrl-D leaves", file=sys.stderr)
    failures = 0
    for line in _typed_lines() if interactive else sys.stdin:
        try:
            if not session.answer(line):
                break
        except KgError as error:
            failures += 1
            show(error)
        except KeyboardInterrupt:
            if not interactive:
                raise
            print("stopped; finished images are kept", file=sys.stderr)
    if failures and not interactive:
        raise PartialBatchError(f"{failures} of the lines failed; the others are done")


app.command()(shell)


def _typed_lines() -> Iterator[str]:
    """Yield the lines typed on a terminal, until Ctrl-D; Ctrl-C gives up a line."""
    with _history():
        while True:
            try:
                yield input(PROMPT)
            except EOFError:
                print(file=sys.stderr)
                return
            except KeyboardInterrupt:
                print(file=sys.stderr)


@contextmanager
def _history() -> Iterator[None]:
    """Edit lines with a history that outlasts the session, where Python has readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    file: Path = user_cache() / "shell_history"
    readline.set_history_length(HISTORY_LINES)
    with suppress(OSError):  # there is none yet
        readline.read_history_file(file)
    try:
        yield
    finally:
        with suppress(OSError, KgError):  # a session without a place for its history
            make_folder(file.parent)
            file.touch(mode=0o600)
            readline.write_history_file(file)
