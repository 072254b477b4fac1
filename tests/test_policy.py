"""The house's rules, each a line of a table: who may import whom, which names stand where, how long things may be.

A rule is a function of a file's path and source that gives complaints. Every rule is shown to refuse a small bad source.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
import zipfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("app", "training", "ganserve")
Rule = Callable[[str, str], list[str]]

# --- the tables ---------------------------------------------------------------------------------------------------------------

# module -> what it imports of this project (a later "!" takes away), and from elsewhere beside the standard library.
# The first line that fits a module counts. Nobody imports what is not here.
IMPORTS = (
    ("training.contract", "", "pydantic"),
    ("training.commands", "training.contract", "pydantic"),
    ("training.probe", "training.contract", ""),
    ("training.files.pictures", "training.contract", "PIL numpy"),
    ("training.files.onnx", "", "onnxruntime numpy"),
    ("training.files.*", "training.contract training.files.*", "pydantic"),
    ("training.architectures.*", "training.contract training.game training.layers training.features.*", "torch pydantic"),
    ("training.features.inception", "training.contract training.features training.features.* training.files.*", "torch torch_fidelity"),
    ("training.losses", "training.penalties", "torch pydantic"),
    ("training.game", "training.contract", "torch pydantic"),
    ("training.presets", "", "pydantic"),
    ("training.dataset*", "training.contract training.files.* training.dataset*", "numpy pydantic PIL torchvision gdown"),
    ("training.catalog", "training.*", "pydantic"),
    ("training.worker", "training.* !training.architectures.*", "torch"),
    ("training.preparation", "training.* !training.architectures.* !training.worker", "torch"),
    ("training.blueprint", "training.catalog training.contract training.game", "torch"),
    ("training.summary", "training.contract training.files training.files.*", "matplotlib numpy PIL"),
    ("training.event_files", "training.contract", "torch numpy PIL"),
    ("training.export_onnx", "training.contract training.files.onnx training.game", "torch"),
    ("training.estimate", "training.* !training.architectures.* !training.worker !training.catalog", "torch"),
    ("training.submission", "training.* !training.architectures.* !training.worker", "pydantic"),
    ("training.*", "training.* !training.architectures.* !training.worker !training.catalog", "torch torchvision numpy pydantic"),
    ("app.main", "app.*", "fastapi"),
    ("app.client", "app.client.* app.schemas.*", "httpx"),  # no torch, no FastAPI: it stands in programs that only ask
    ("app.client.*", "app.client.* app.archives app.schemas.* training.contract", "httpx PIL pydantic rich"),
    ("app.server", "app.*", "uvicorn"),
    (
        "app.routes.*",
        "app.* !app.main !app.engine !app.batcher !app.routes.* training.contract training.commands",
        "fastapi pydantic starlette",
    ),
    ("app.jobs", "app.* !app.main !app.routes.* training.contract training.catalog training.files.*", "pydantic"),
    ("app.database", "app.errors app.settings", "sqlalchemy alembic"),
    ("app.index", "app.database training.contract", "sqlalchemy"),
    ("app.migrations.*", "app.index", "sqlalchemy alembic"),
    (
        "app.datasets",
        "app.* !app.main !app.routes.* training.contract training.datasets training.dataset_sheets training.files.*",
        "starlette",
    ),
    ("app.trainable", "app.errors app.schemas.* training.catalog", ""),
    ("app.watching", "app.encoders app.errors app.schemas.* training.files.*", "PIL numpy"),
    *(
        (f"app.{room}", "app.* !app.main !app.routes.* training.contract training.probe training.files.*", "torch numpy pydantic fastapi")
        for room in (
            "engine",
            "engines",
            "proving",
            "tiles",
            "batcher",
            "turns",
            "store",
            "signature",
            "latents",
            "pixels",
            "service",
            "tuning",
        )
    ),
    *(
        (f"app.{room}", "app.* !app.main !app.routes.* training.contract training.probe training.files.*", "torch numpy pydantic")
        for room in ("inference", "scoring", "transform", "forms")
    ),
    ("app.augmentation", "app.* !app.main !app.routes.* training.contract training.datasets", "numpy"),
    ("app.backends", "app.choices training.contract training.files.onnx", "torch"),
    ("app.encoders", "app.errors", "PIL isal numpy"),
    ("app.protocol.*", "app.* !app.main !app.routes.* training.contract", "torch numpy pydantic pydantic_core"),
    ("app.metrics", "app.visits training.contract", "prometheus_client"),
    ("app.cards", "training.commands training.contract", ""),
    ("app.*", "app.* !app.main !app.routes.* training.contract training.files.*", "fastapi starlette pydantic pydantic_core"),
    ("ganserve.stores", "ganserve.confirming training.contract training.files.*", "fsspec obstore"),
    (
        "ganserve.*",
        "ganserve.* app.main app.server app.service app.settings app.choices app.tuning app.database app.errors app.index"
        " app.reconciliation app.repository training.*",
        "cyclopts httpx rich pydantic torch numpy PIL",
    ),
)

# name -> the files that it stands in, as it is written or imported under whatever name
NAMES = (
    ("torch.jit", "app/backends.py training/export.py"),
    ("onnxruntime", "training/files/onnx.py"),
    ("torch.onnx", "training/export_onnx.py"),
    ("app.main", "app/server.py ganserve/*"),
    ("training.summary", "training/worker.py training/run.py"),  # nobody else waits for matplotlib
    ("training.dataset_sources", "training/dataset_sources.py ganserve/datasets.py"),  # a server or worker never downloads
    ("os.environ", "app/settings.py app/workers.py training/team.py"),  # read once; a worker is handed it on
    ("importlib.import_module", "training/catalog.py"),
    ("print", "ganserve/*"),
    *((name, "") for name in ("__import__", "eval", "exec", "compile", "breakpoint", "os.system", "os.popen", "os.getenv", "os.putenv")),
    ("pickle", "training/features/weights.py"),  # the error that torch.load raises, alone
    *((name, "") for name in ("dill", "joblib", "marshal", "shelve", "yaml")),
    *((name, "") for name in ("os.fork", "multiprocessing", "torch.multiprocessing")),
    *((name, "") for name in ("urllib.request", "requests", "torch.hub")),
)

# call -> a keyword and its value, without which it is refused
CALLS = (
    ("torch.load", "weights_only", True),
    ("numpy.load", "allow_pickle", False),
)
EXCEPT_EXCEPTION = "training/worker.py"
LONGEST_FILE, LONGEST_FUNCTION = 399, 59
# a line of the service that may name an architecture: the example that /docs sends
EXAMPLE = ("app/schemas/*.py", "json_schema_extra={")
UNFINISHED = r"\b(TODO|FIXME|XXX|HACK)\b"
# what a tracked text must not hold: it speaks of the project, not of the machine that it was written on
FOREIGN = (
    (r"/home/[a-z]|/root/|/Users/[A-Za-z]|[A-Z]:\\Users", "a home folder"),
    (r"--(extra-)?index-url|--find-links|pythonhosted\.org|pypi\.org/simple|registry\.npmjs|file:///", "a registry"),
)


# --- reading ------------------------------------------------------------------------------------------------------------------


@cache
def modules() -> frozenset[str]:
    """Every module of the project, by its dotted name."""
    return frozenset(module_of(path) for path in sources())


@cache
def sources() -> dict[str, str]:
    """Every source of the three packages, by its path."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in files}


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Line, the dotted name that is imported, and the name that it gets here."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, alias.asname or alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, "." * node.level + f"{node.module or ''}.{alias.name}", alias.asname or alias.name


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that is imported or written, whatever it is called here."""
    called = {}
    for line, name, here in imports(tree):
        yield line, name
        called[here] = name if here != name.split(".")[0] else here
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and (name := dotted(node)):
            first, _, rest = name.partition(".")
            yield node.lineno, ".".join(part for part in (called.get(first, first), rest) if part)


def dotted(node: ast.AST) -> str | None:
    """`a.b.c` of an expression that is nothing else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (inner := dotted(node.value)):
        return f"{inner}.{node.attr}"
    return None


def docstrings(tree: ast.AST) -> set[int]:
    """The identities of constants that are docstrings."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                found.add(id(first.value))
    return found


def fits(name: str, patterns: str) -> bool:
    """Whether one of the patterns, separated by spaces, is the name; those with "!" take away."""
    wanted = [pattern for pattern in patterns.split() if not pattern.startswith("!")]
    unwanted = [pattern[1:] for pattern in patterns.split() if pattern.startswith("!")]
    return any(fnmatchcase(name, pattern) for pattern in wanted) and not any(fnmatchcase(name, pattern) for pattern in unwanted)


def is_or_is_in(name: str, parent: str) -> bool:
    return name == parent or name.startswith(f"{parent}.")


# --- the rules ----------------------------------------------------------------------------------------------------------------


def who_imports_whom(path: str, source: str) -> list[str]:
    module = module_of(path)
    row = next(((ours, others) for who, ours, others in IMPORTS if fnmatchcase(module, who)), ("", ""))
    complaints = []
    for line, name, _ in imports(ast.parse(source)):
        top = name.split(".")[0]
        if not top:
            complaints.append(f"{path}:{line}: imports are absolute, and this is {name}")
        elif top in PACKAGES:
            imported = name if name in modules() else name.rpartition(".")[0]
            if not fits(imported, row[0]):
                complaints.append(f"{path}:{line}: {module} must not import {imported}; of the project it may: {row[0] or 'nothing'}")
        elif top not in sys.stdlib_module_names and top not in row[1].split():
            complaints.append(f"{path}:{line}: {module} must not import {top}; from elsewhere it may: {row[1] or 'nothing'}")
    return complaints


def names_stand_where_they_may(path: str, source: str) -> list[str]:
    found = {
        (line, name)
        for line, written in names(ast.parse(source))
        for name, where in NAMES
        if is_or_is_in(written, name) and not fits(path, where)
    }
    return [f"{path}:{line}: {name} stands only in: {dict(NAMES)[name] or 'no file'}" for line, name in sorted(found)]


def calls_say_what_they_must(path: str, source: str) -> list[str]:
    tree = ast.parse(source)
    called = {here: name for _, name, here in imports(tree)}
    complaints = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        first, _, rest = (dotted(node.func) or "").partition(".")
        name = ".".join(part for part in (called.get(first, first), rest) if part)
        for call, keyword, value in CALLS:
            said = given.get(keyword)
            if name == call and not (isinstance(said, ast.Constant) and said.value is value):
                complaints.append(f"{path}:{node.lineno}: {call} must say {keyword}={value}")
        shell = given.get("shell")
        if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
            complaints.append(f"{path}:{node.lineno}: no process is started by a shell")
    return complaints


def the_service_names_no_architecture(path: str, source: str) -> list[str]:
    """It looks at the kinds of inputs and outputs. An architecture's key is the name of its file."""
    if not path.startswith("app/"):
        return []
    keys = [file.stem for file in (ROOT / "training" / "architectures").glob("*.py") if file.stem != "__init__"]
    tree, lines = ast.parse(source), source.splitlines()
    ignored = docstrings(tree)
    complaints = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in ignored:
            named = [key for key in keys if re.search(rf"\b{key}\b", node.value)]
            if named and not (fnmatchcase(path, EXAMPLE[0]) and EXAMPLE[1] in lines[node.lineno - 1]):
                complaints.append(f"{path}:{node.lineno}: names the architecture {named[0]}; branch on the kind of an input or output")
    return complaints


def only_the_worker_catches_everything(path: str, source: str) -> list[str]:
    complaints = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        kinds = {"BaseException"} if node.type is None else {dotted(part) for part in ast.walk(node.type)}
        passes_on = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
        if "Exception" in kinds and path != EXCEPT_EXCEPTION:
            complaints.append(f"{path}:{node.lineno}: except Exception stands only in {EXCEPT_EXCEPTION}")
        if "BaseException" in kinds and not passes_on:
            complaints.append(f"{path}:{node.lineno}: whoever catches everything raises it again")
    return complaints


def files_and_functions_are_short(path: str, source: str) -> list[str]:
    complaints = []
    if (length := len(source.splitlines())) > LONGEST_FILE:
        complaints.append(f"{path}: {length} lines; {LONGEST_FILE} are allowed")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > LONGEST_FUNCTION:
                complaints.append(f"{path}:{node.lineno}: {node.name} has {length} lines; {LONGEST_FUNCTION} are allowed")
    return complaints


def nothing_is_left_unfinished(path: str, source: str) -> list[str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [
        f"{path}:{token.start[0]}: an issue says what is left to do, not a comment"
        for token in tokens
        if token.type in (tokenize.COMMENT, tokenize.STRING) and re.search(UNFINISHED, token.string)
    ]


RULES: tuple[Rule, ...] = (
    who_imports_whom,
    names_stand_where_they_may,
    calls_say_what_they_must,
    the_service_names_no_architecture,
    only_the_worker_catches_everything,
    files_and_functions_are_short,
    nothing_is_left_unfinished,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_code_keeps_the_rule(rule: Rule) -> None:
    assert len(sources()) > 40
    complaints = [complaint for path, source in sources().items() for complaint in rule(path, source)]
    assert not complaints, "\n" + "\n".join(complaints)


# --- each rule can fail -------------------------------------------------------------------------------------------------------

BAD: tuple[tuple[Rule, str, str], ...] = (
    (who_imports_whom, "app/routes/inference.py", "import torch"),
    (who_imports_whom, "app/routes/inference.py", "from torch import Tensor"),
    (who_imports_whom, "app/routes/inference.py", "from training.files import runs"),
    (who_imports_whom, "app/routes/inference.py", "from app.engine import Engine"),
    (who_imports_whom, "app/routes/inference.py", "from app import batcher"),
    (who_imports_whom, "app/routes/inference.py", "from app.routes.training import router"),
    (who_imports_whom, "app/routes/inference.py", "from app.main import create_app"),
    (who_imports_whom, "app/routes/inference.py", "from ..errors import Invalid"),
    (who_imports_whom, "app/store.py", "from training.worker import work"),
    (who_imports_whom, "app/store.py", "from training.catalog import build"),
    (who_imports_whom, "app/jobs.py", "from training import worker"),
    (who_imports_whom, "app/jobs.py", "def late():\n    from training.loop import Training"),
    (who_imports_whom, "app/jobs.py", "import training.game"),
    (who_imports_whom, "app/schemas/inference.py", "import torch"),
    (who_imports_whom, "app/errors.py", "from ganserve.cli import main"),
    (who_imports_whom, "app/engine.py", "from app.main import create_app"),
    (who_imports_whom, "training/loop.py", "from app.errors import Invalid"),
    (who_imports_whom, "training/worker.py", "import fastapi"),
    (who_imports_whom, "training/worker.py", "import httpx"),
    (who_imports_whom, "training/export.py", "from starlette.responses import Response"),
    (who_imports_whom, "training/export.py", "import uvicorn"),
    (who_imports_whom, "training/worker.py", "from ganserve.progress import telling"),
    (who_imports_whom, "training/loop.py", "from training.architectures import mlp"),
    (who_imports_whom, "training/loop.py", "from training.worker import work"),
    (who_imports_whom, "training/architectures/mlp.py", "from training.architectures.dcgan import Generator"),
    (who_imports_whom, "training/architectures/mlp.py", "from training.losses import Minimax"),
    (who_imports_whom, "training/architectures/mlp.py", "from training import loop"),
    (who_imports_whom, "training/architectures/mlp.py", "import numpy"),
    (who_imports_whom, "training/contract.py", "import torch"),
    (who_imports_whom, "training/contract.py", "from training.files import runs"),
    (who_imports_whom, "training/files/locks.py", "import numpy"),
    (who_imports_whom, "training/files/locks.py", "from training.catalog import build"),
    (who_imports_whom, "training/files/pictures.py", "import torch"),
    (who_imports_whom, "training/datasets.py", "import torch"),
    (who_imports_whom, "ganserve/cli.py", "from app.engine import Engine"),
    (who_imports_whom, "ganserve/cli.py", "import requests"),
    (names_stand_where_they_may, "training/loop.py", "import torch\ntorch.jit.script(module)"),
    (names_stand_where_they_may, "training/loop.py", "from torch import jit"),
    (names_stand_where_they_may, "training/loop.py", "from torch.jit import load"),
    (names_stand_where_they_may, "training/loop.py", "import torch.jit as quick"),
    (names_stand_where_they_may, "training/loop.py", "import torch as t\nt.jit.save(module, path)"),
    (names_stand_where_they_may, "training/loop.py", "from training import summary"),
    (who_imports_whom, "training/loop.py", "import matplotlib"),
    (who_imports_whom, "training/event_files.py", "from training.files import runs"),
    (names_stand_where_they_may, "app/store.py", "import os\nkey = os.environ['KEY']"),
    (names_stand_where_they_may, "app/store.py", "from os import environ"),
    (names_stand_where_they_may, "ganserve/cli.py", "import os\nkey = os.getenv('KEY')"),
    (names_stand_where_they_may, "app/store.py", "import pickle"),
    (names_stand_where_they_may, "app/store.py", "from pickle import loads"),
    (names_stand_where_they_may, "app/store.py", "eval('1')"),
    (names_stand_where_they_may, "app/store.py", "exec('1')"),
    (names_stand_where_they_may, "app/store.py", "import os\nos.system('ls')"),
    (names_stand_where_they_may, "app/store.py", "from os import system as run"),
    (names_stand_where_they_may, "app/store.py", "import yaml\nyaml.load(text)"),
    (names_stand_where_they_may, "app/jobs.py", "import multiprocessing"),
    (names_stand_where_they_may, "app/jobs.py", "import os\nos.fork()"),
    (names_stand_where_they_may, "training/loop.py", "print('loss')"),
    (names_stand_where_they_may, "app/jobs.py", "show = print"),
    (names_stand_where_they_may, "app/store.py", "import importlib\nimportlib.import_module(name)"),
    (names_stand_where_they_may, "app/store.py", "from app import main"),
    (names_stand_where_they_may, "training/worker.py", "from training.dataset_sources import published"),
    (names_stand_where_they_may, "training/worker.py", "from urllib.request import urlopen"),
    (calls_say_what_they_must, "training/checkpoint.py", "import torch\ntorch.load(path)"),
    (calls_say_what_they_must, "training/checkpoint.py", "import torch\ntorch.load(path, weights_only=False)"),
    (calls_say_what_they_must, "training/checkpoint.py", "import torch\ntorch.load(path, weights_only=safe)"),
    (calls_say_what_they_must, "training/checkpoint.py", "from torch import load\nload(path)"),
    (calls_say_what_they_must, "training/datasets.py", "import numpy as np\nnp.load(path)"),
    (calls_say_what_they_must, "training/datasets.py", "import numpy as np\nnp.load(path, allow_pickle=True)"),
    (calls_say_what_they_must, "app/jobs.py", "import subprocess\nsubprocess.run(line, shell=True)"),
    (calls_say_what_they_must, "app/jobs.py", "Popen(line, shell=yes)"),
    (the_service_names_no_architecture, "app/store.py", "if manifest.architecture == 'mlp': pass"),
    (the_service_names_no_architecture, "app/store.py", "SQUARE = {'dcgan', 'other'}"),
    (the_service_names_no_architecture, "app/store.py", "def f(x):\n    return f'dcgan {x}'"),
    (the_service_names_no_architecture, "app/schemas/inference.py", "DEFAULT = 'mlp'"),
    (only_the_worker_catches_everything, "app/jobs.py", "try:\n    f()\nexcept Exception:\n    pass"),
    (only_the_worker_catches_everything, "app/jobs.py", "try:\n    f()\nexcept (ValueError, Exception) as error:\n    raise"),
    (only_the_worker_catches_everything, "app/jobs.py", "try:\n    f()\nexcept:\n    pass"),
    (only_the_worker_catches_everything, "training/worker.py", "try:\n    f()\nexcept BaseException:\n    pass"),
    (files_and_functions_are_short, "app/jobs.py", "x = 1\n" * 400),
    (files_and_functions_are_short, "app/jobs.py", "def f():\n" + "    x = 1\n" * 59),
    (files_and_functions_are_short, "app/jobs.py", "class A:\n    async def f(self):\n" + "        x = 1\n" * 59),
    (nothing_is_left_unfinished, "app/jobs.py", "x = 1  # TODO: more"),
    (nothing_is_left_unfinished, "app/jobs.py", "# FIXME"),
    (nothing_is_left_unfinished, "app/jobs.py", '"""Jobs. TODO: cancel."""'),
)

GOOD: tuple[tuple[Rule, str, str], ...] = (
    (who_imports_whom, "app/jobs.py", "import os\nfrom training import catalog\nfrom training.files import locks, runs"),
    (
        who_imports_whom,
        "app/routes/models.py",
        "from fastapi import APIRouter\nfrom app.schemas.models import Models\nfrom app import errors",
    ),
    (who_imports_whom, "training/architectures/mlp.py", "import torch.nn.functional as F\nfrom training.game import Game"),
    (names_stand_where_they_may, "app/backends.py", "import torch\ntorch.jit.load(path)"),
    (names_stand_where_they_may, "app/engine.py", "module.eval()\nre.compile('a')\nexecutor.exec(1)\nself.print(1)"),
    (names_stand_where_they_may, "ganserve/cli.py", "print(1)"),
    (calls_say_what_they_must, "training/checkpoint.py", "import torch\ntorch.load(path, weights_only=True)"),
    (calls_say_what_they_must, "training/datasets.py", "import numpy as np\nnp.load(path, allow_pickle=False)\njson.load(file)"),
    (the_service_names_no_architecture, "app/store.py", '"""Serves a dcgan, say."""\nx = "dcgans"'),
    (the_service_names_no_architecture, "training/worker.py", "x = 'mlp'"),
    (the_service_names_no_architecture, "app/schemas/inference.py", 'model_config = ConfigDict(json_schema_extra={"architecture": "mlp"})'),
    (only_the_worker_catches_everything, "training/worker.py", "try:\n    f()\nexcept Exception:\n    pass"),
    (only_the_worker_catches_everything, "app/jobs.py", "try:\n    f()\nexcept BaseException:\n    g()\n    raise"),
    (files_and_functions_are_short, "app/jobs.py", "def f():\n" + "    x = 1\n" * 58),
    (nothing_is_left_unfinished, "app/jobs.py", "x = todo  # what todos are"),
)


@pytest.mark.parametrize(("rule", "path", "source"), BAD, ids=lambda value: getattr(value, "__name__", None) or repr(value)[:40])
def test_a_rule_refuses_what_breaks_it(rule: Rule, path: str, source: str) -> None:
    complaints = rule(path, source)
    assert complaints
    assert all(complaint.startswith(f"{path}:") for complaint in complaints)


@pytest.mark.parametrize(("rule", "path", "source"), GOOD, ids=lambda value: getattr(value, "__name__", None) or repr(value)[:40])
def test_a_rule_allows_what_keeps_it(rule: Rule, path: str, source: str) -> None:
    assert rule(path, source) == []


def test_every_rule_is_shown_to_refuse_something() -> None:
    assert {rule for rule, _, _ in BAD} == set(RULES)


def test_every_line_of_the_import_table_has_a_module() -> None:
    """A line that fits no module, or a module that no line fits, is a slip of the pen."""
    first = [next((who for who, _, _ in IMPORTS if fnmatchcase(module, who)), None) for module in modules() if "." in module]
    assert None not in first
    assert set(first) == {who for who, _, _ in IMPORTS}


# --- what is tracked ----------------------------------------------------------------------------------------------------------


def tracked() -> list[str]:
    """The paths of the repository's files, of those that are to be added too."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("this is no clone: git lists no files here")
    return [path for path in listed.stdout.split("\0") if path and (ROOT / path).is_file()]


def stays_out(path: str) -> list[str]:
    """Why a path must not be tracked."""
    unwanted = {".venv", "__pycache__", "node_modules", "build", "state"} & set(Path(path).parts)
    return [f"{path}: {name} is made here and stays here" for name in sorted(unwanted)]


def speaks_of_the_machine(path: str, text: str) -> list[str]:
    return [
        f"{path}:{number}: {what}: {found.group()}"
        for number, line in enumerate(text.splitlines(), start=1)
        for pattern, what in FOREIGN
        if (found := re.search(pattern, line))
    ]


def texts(path: str) -> Iterator[str]:
    """What can be read of a file: its text, or the entries of a TorchScript archive."""
    content = (ROOT / path).read_bytes()
    if path.endswith(".pt"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                yield "" if "/data/" in name or "/constants/" in name else archive.read(name).decode("utf-8", errors="replace")
    elif b"\0" not in content[:4096]:
        yield content.decode("utf-8", errors="replace")


def test_no_tracked_path_is_made_by_the_machine() -> None:
    assert [complaint for path in tracked() for complaint in stays_out(path)] == []
    assert stays_out(".venv/bin/python")
    assert stays_out("app/__pycache__/main.pyc")
    assert stays_out("state/jobs/1/config.json")


def test_no_tracked_text_speaks_of_the_machine_it_was_written_on() -> None:
    paths = [path for path in tracked() if path != "tests/test_policy.py"]
    complaints = [complaint for path in paths for text in texts(path) for complaint in speaks_of_the_machine(path, text)]
    assert not complaints, "\n" + "\n".join(complaints)


@pytest.mark.parametrize(
    "text",
    ["/home/me/x", "see /root/x", "/Users/Me/x", r"C:\Users\me", "pip install --index-url https://x/y", "https://files.pythonhosted.org/x"],
)
def test_a_text_that_speaks_of_the_machine_is_refused(text: str) -> None:
    assert speaks_of_the_machine("README.md", f"fine\n{text}")[0].startswith("README.md:2: ")


def test_published_models_hold_no_folder_of_the_machine_that_trained() -> None:
    models = [path for path in tracked() if path.endswith(".pt")]
    complaints = [path for path in models if any("site-packages" in text for text in texts(path))]
    assert complaints == []
