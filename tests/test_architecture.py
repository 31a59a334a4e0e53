"""Laws of the package's shape: imports only go down, torch waits, and files stay readable."""

import ast
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import kgcli

PACKAGE = Path(kgcli.__file__).parent
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}

# Lowest first. A folder (or a module of the root) imports those of the rows above it, its own modules, and those of
# its own row; `model` and `data` are strangers. Types for annotations alone count as imports too.
LAYERS = [
    ("version", "errors"),
    ("files", "reading"),
    ("config", "recipe", "runtime", "world"),
    ("model", "data"),
    ("weights",),
    ("construction",),
    ("inference",),
    ("training",),
    ("evaluation", "serving", "speed"),
    ("engine",),
    ("app",),
    ("cli",),
]
RANK = {folder: rank for rank, folders in enumerate(LAYERS) for folder in folders}
STRANGERS = {("model", "data"), ("data", "model"), ("world", "config"), ("config", "runtime")}
# Strings may name code to import in the registries of commands, stages, baselines and construction alone.
REGISTRIES = {
    *("cli/app.py", "training/stages/__init__.py", "evaluation/baselines/table.py", "construction/table.py"),
}
MOST_MODULES = 16  # of a folder
MOST_IN_ROOT = 8
LONGEST_CHAIN = 9
HEAVY = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "safetensors", "einops")
# Runs before torch loads: all checks of prompts, images, settings, folders and recipes.
LIGHT = (
    *("errors", "version", "config", "recipe", "runtime", "files", "reading", "world", "engine", "cli"),
    *("data.prompt", "data.tokenizer", "data.images", "weights.folder", "weights.shipped"),
    *("weights.hub", "weights.published.catalogue", "weights.published.pull"),
    *("training.chains", "training.export"),
    *(f"inference.{name}" for name in ("adapters.named", "inputs", "metadata", "output", "replay", "request")),
)


@dataclass
class Imports(ast.NodeVisitor):
    """What a file imports when it is itself imported, and what later, in functions or for types."""

    at_once: set[str] = field(default_factory=set)
    later: set[str] = field(default_factory=set)
    depth: int = 0

    def visit_FunctionDef(self, node):
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    def visit_If(self, node):
        for_types = getattr(node.test, "id", "") == "TYPE_CHECKING"
        self.depth += for_types
        self.generic_visit(node)
        self.depth -= for_types

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


def folder_of(module):
    return module.removeprefix("kgcli.").split(".")[0]


def module_of(name):
    return "kgcli." + name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_of(name): path for name, path in FILES.items() if name not in ("__init__.py", "__main__.py")}


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_go_down(module):
    folder = folder_of(module)
    assert folder in RANK, f"{module} has no place; give it one in LAYERS"
    imports = imports_of(MODULES[module])
    for name in sorted(imports.at_once | imports.later):
        if name == "kgcli" or not name.startswith("kgcli."):
            assert name != "kgcli", f"{module} imports the package's front, which imports everything"
            continue
        other = folder_of(name)
        assert RANK[other] <= RANK[folder] and (folder, other) not in STRANGERS, f"{module} imports {name}"


def test_no_circles_and_no_long_chains():
    graph = {module: imports_of(path).at_once & MODULES.keys() for module, path in MODULES.items()}
    lengths, under_way = {}, []

    def length_of(module):
        assert module not in under_way, " -> ".join([*under_way, module])
        if module not in lengths:
            under_way.append(module)
            lengths[module] = 1 + max((length_of(other) for other in graph[module] - {module}), default=0)
            under_way.pop()
        return lengths[module]

    longest = max(MODULES, key=length_of)
    assert lengths[longest] <= LONGEST_CHAIN, f"{longest} starts a chain of {lengths[longest]} imports"


@pytest.mark.parametrize("name", FILES)
def test_strings_import_code_in_the_registries_alone(name):
    imports = imports_of(FILES[name])
    if "importlib" in imports.at_once | imports.later or "importlib.import_module" in FILES[name].read_text("utf-8"):
        names = {
            alias.name
            for node in ast.walk(ast.parse(FILES[name].read_text("utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module == "importlib"
            for alias in node.names
        }
        assert "import_module" not in names or name in REGISTRIES


def test_folders_stay_small_enough_to_know():
    folders = {}
    for name in FILES:
        if not name.endswith("__.py"):
            folders.setdefault(str(Path(name).parent), []).append(name)
    assert len(folders.pop(".")) <= MOST_IN_ROOT
    for folder, modules in folders.items():
        assert len(modules) <= MOST_MODULES, f"{folder} holds {len(modules)} modules"


@pytest.mark.parametrize("module", [m for m in MODULES if f"{m}.".startswith(tuple(f"kgcli.{n}." for n in LIGHT))])
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
            assert caught not in ("", "Exception", "BaseException"), f"{name}:{node.lineno}"


def test_one_module_talks_to_the_hub():
    for module, path in MODULES.items():
        imports = imports_of(path)
        if module != "kgcli.weights.hub":
            assert not any(name.split(".")[0] == "huggingface_hub" for name in imports.at_once | imports.later), module
