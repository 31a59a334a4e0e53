"""Laws of the package's shape: imports go one way, torch waits, and files stay readable."""

import ast
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import kgcli

PACKAGE = Path(kgcli.__file__).parent
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}

# A room imports rooms to its left and itself; rooms of one group are strangers to each other.
ROOMS = [
    {"errors"},
    {"files"},
    {"reading"},
    {"tensorfiles"},
    {"config"},
    {"shipped", "checkpoint", "resume", "optim", "samplers", "quantization"},
    {"data", "model"},
    {"modelfolder", "sampling", "controlmaps", "evaluation.judges", "evaluation.intervals"},
    {"adapters", "inputs", "encoder", "evaluation.evaluators"},
    {"request", "modelcard"},
    {"metadata", "conversion"},
    {"output", "replay", "pipeline", "stages"},
    {"metrics", "attach", "conditioning"},
    {"pool"},
    {"train"},
    {"engine", "ship"},
    {"evaluation"},
    {"cli"},
]
RANK = {room: rank for rank, group in enumerate(ROOMS) for room in group}
# The verb `evaluate` and the type of a run point back: the one imports when called, the other for types alone.
HEAVY = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "safetensors", "einops")
# What runs before torch loads: all checks of prompts, pictures, settings, folders and recipes.
LIGHT = (
    "errors",
    "files",
    "reading",
    "config",
    "shipped",
    "modelfolder",
    "adapters",
    "request",
    "inputs",
    "quantization",
    "metadata",
    "output",
    "replay",
    "cli",
)
LIGHT_DATA = ("data.prompt", "data.tokenizer", "data.images", "data.world")


@dataclass
class Imports(ast.NodeVisitor):
    """What a file imports when it is itself imported, and what later, in functions."""

    at_once: set[str] = field(default_factory=set)
    later: set[str] = field(default_factory=set)
    depth: int = 0

    def visit_FunctionDef(self, node):
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    def visit_If(self, node):
        if getattr(node.test, "id", "") != "TYPE_CHECKING":
            self.generic_visit(node)

    def visit_Import(self, node):
        self._add(alias.name for alias in node.names)

    def visit_ImportFrom(self, node):
        assert node.level == 0, "imports are absolute"
        modules = [f"{node.module}.{alias.name}" for alias in node.names]
        self._add(module if is_module(module) else node.module for module in modules)

    def _add(self, names):
        (self.later if self.depth else self.at_once).update(names)


def is_module(name):
    path = PACKAGE.parent / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports_of(path):
    imports = Imports()
    imports.visit(ast.parse(path.read_text("utf-8")))
    return imports


def room_of(module):
    """`kgcli.data.batch` is in `data`; files with a room of their own come first."""
    name = module.removeprefix("kgcli.")
    if name.startswith("stages_"):
        return "stages"
    return name if name in RANK else name.split(".")[0]


def module_of(name):
    return "kgcli." + name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_of(name): path for name, path in FILES.items() if name not in ("__init__.py", "__main__.py")}


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_go_right(module):
    room = room_of(module)
    assert room in RANK, f"{module} has no room; give it one in ROOMS"
    imports = imports_of(MODULES[module])
    for name in sorted(imports.at_once | imports.later):
        if not name.startswith("kgcli."):
            continue
        other = room_of(name)
        if (room, other) in (("engine", "evaluation"),) and name in imports.later:
            continue
        assert other == room or RANK[other] < RANK[room], f"{module} imports {name}"


def test_model_and_data_are_strangers():
    for module, path in MODULES.items():
        for one, other in (("model", "data"), ("data", "model")):
            if room_of(module) == one:
                imports = imports_of(path)
                assert not any(name.startswith(f"kgcli.{other}") for name in imports.at_once | imports.later), module


def test_no_circles():
    graph = {module: imports_of(path).at_once & MODULES.keys() for module, path in MODULES.items()}
    done, under_way = set(), []

    def visit(module):
        assert module not in under_way, " -> ".join([*under_way, module])
        if module not in done:
            under_way.append(module)
            for other in sorted(graph[module] - {module}):
                visit(other)
            done.add(under_way.pop())

    for module in graph:
        visit(module)


@pytest.mark.parametrize("module", [name for name in MODULES if room_of(name) in LIGHT])
def test_what_runs_before_torch_does_not_import_it(module):
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in MODULES:
            continue
        seen.add(name)
        at_once = imports_of(MODULES[name]).at_once
        assert not {other.split(".")[0] for other in at_once} & set(HEAVY), f"{module} reaches torch through {name}"
        waiting += at_once
    if module.startswith("kgcli.cli."):
        own = imports_of(MODULES[module])
        assert not {other.split(".")[0] for other in own.at_once | own.later} & {"click", "torch"}


@pytest.mark.parametrize("module", [name for name in MODULES if name.removeprefix("kgcli.").startswith(LIGHT_DATA)])
def test_prompts_and_pictures_are_read_without_torch(module):
    imports = imports_of(MODULES[module])
    assert not {name.split(".")[0] for name in imports.at_once} & set(HEAVY)


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_one_job_and_says_which(name):
    text = FILES[name].read_text("utf-8")
    assert text.count("\n") <= 400
    assert text.isascii()
    if text:
        assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("name", FILES)
def test_functions_can_be_read_at_a_glance(name):
    for node in ast.walk(ast.parse(FILES[name].read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} has {node.end_lineno - node.lineno + 1} lines"


@pytest.mark.parametrize("name", FILES)
def test_nothing_points_out_of_the_package(name):
    text = FILES[name].read_text("utf-8")
    for outside in ("../shared", "/" + "work/", "/root/", "/home/"):
        assert outside not in text


@pytest.mark.parametrize("name", FILES)
def test_failures_are_not_swallowed(name):
    for node in ast.walk(ast.parse(FILES[name].read_text("utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else ""
            if name == "cli/app.py" and caught == "BaseException":  # the one place where all of them end
                continue
            assert caught not in ("", "Exception", "BaseException"), f"{name}:{node.lineno}"
