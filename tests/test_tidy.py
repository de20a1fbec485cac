"""The rules of the house that no other tool checks, as tests.

Owns: lengths, names, docstrings, what a comment must explain, what a file may not say. The numbers of today's
largest function and file are kept in tests/tidy_ratchet.toml: they may fall and never rise
(`ratchet_is_tight` says when they can be lowered). Does not own: format, lint, types and import contracts,
which ruff, mypy and import-linter check.
"""

from __future__ import annotations

import ast
import importlib.metadata
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import tidegate
from tidy_cpp import cpp_functions

TREE = Path(__file__).resolve().parent.parent
RATCHET = tomllib.loads((TREE / "tests" / "tidy_ratchet.toml").read_text(encoding="utf-8"))
CPP_SUFFIXES = frozenset({".c", ".cc", ".cpp", ".cu", ".h", ".hpp"})
BANNED_NAMES = frozenset({"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc"})
# What a linter is told is no reason by itself; at least three words beside it are.
DIRECTIVE = re.compile(
    r"#\s*(?:type: ignore(?:\[[\w\-, ]*\])?|noqa(?::\s*[A-Z]+[0-9]+(?:,\s*[A-Z]+[0-9]+)*)?|fmt: \w+)"
)
REASON = re.compile(r"\w+\W+\w+\W+\w+")


def tracked_files() -> list[Path]:
    """What git tracks or would track: a new file is held to the rules before it is committed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=TREE, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = sorted({TREE / name for name in listed.stdout.split("\0") if name})
    return [path for path in found if path.is_file()]


FILES = tracked_files()
PYTHON_FILES = [path for path in FILES if path.suffix == ".py"]
CPP_FILES = [path for path in FILES if path.suffix in CPP_SUFFIXES]
SOURCE_FILES = PYTHON_FILES + CPP_FILES


def inner(path: Path) -> str:
    return path.relative_to(TREE).as_posix()


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def line_count(path: Path) -> int:
    return len(text_of(path).splitlines())


def python_functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and length of every function; decorators and docstring count, for they are read as well."""
    for node in ast.walk(ast.parse(text_of(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield f"{inner(path)}:{first} {node.name}", (node.end_lineno or first) - first + 1


def longest(measured: Iterator[tuple[str, int]]) -> tuple[str, int]:
    return max(measured, key=lambda pair: pair[1], default=("nothing", 0))


def measured_maxima() -> dict[str, tuple[str, int]]:
    return {
        "python_function_lines": longest(pair for path in PYTHON_FILES for pair in python_functions(path)),
        "python_file_lines": longest((inner(path), line_count(path)) for path in PYTHON_FILES),
        "cpp_function_lines": longest(
            (f"{inner(path)}:{line} {name}", length)
            for path in CPP_FILES
            for name, line, length in cpp_functions(text_of(path))
        ),
        "cpp_file_lines": longest((inner(path), line_count(path)) for path in CPP_FILES),
    }


@pytest.mark.parametrize("measure", sorted(RATCHET["max"]))
def test_lengths_never_rise(measure: str) -> None:
    where, found = measured_maxima()[measure]
    assert found <= RATCHET["max"][measure], (
        f"{where} has {found} lines, the most is {RATCHET['max'][measure]}"
    )


@pytest.mark.parametrize("measure", sorted(RATCHET["max"]))
def test_ratchet_is_tight(measure: str) -> None:
    where, found = measured_maxima()[measure]
    slack = RATCHET["slack"]
    assert found + slack >= RATCHET["max"][measure], (
        f"the longest is now {where} with {found} lines: lower {measure} in tidy_ratchet.toml to {found}"
    )


def test_the_scanner_of_cpp_functions_sees_functions() -> None:
    source = (
        'int a() {\n  if (x) {\n    y("}");\n  }\n}\nnamespace n {\nstruct S {\n  void b() { c(); }\n};\n}\n'
    )
    assert [(name, length) for name, _, length in cpp_functions(source)] == [("a", 5), ("b", 1)]


def test_no_module_without_a_noun() -> None:
    nameless = [inner(path) for path in SOURCE_FILES if {path.stem, path.parent.name} & BANNED_NAMES]
    assert none(nameless)


def test_every_module_says_what_it_owns() -> None:
    silent = [inner(path) for path in PYTHON_FILES if not ast.get_docstring(ast.parse(text_of(path)))]
    assert none(silent)


def test_every_cpp_noun_says_what_it_owns() -> None:
    """Each header begins with a comment, before or after its guard; so does a source file without one."""
    headers = {path.with_suffix("") for path in CPP_FILES if path.suffix in {".h", ".hpp"}}
    nouns = [
        path for path in CPP_FILES if path.suffix in {".h", ".hpp"} or path.with_suffix("") not in headers
    ]
    comment = re.compile(r"\s*(?:#pragma once\s+)?(?://|/\*)")
    assert none([inner(path) for path in nouns if not comment.match(text_of(path))])


def test_no_deferred_work_in_the_sources() -> None:
    # The words are put together here, so that this file does not contain them.
    deferred = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"]) + r")\b")
    found = [
        f"{inner(path)}:{n}" for path in SOURCE_FILES for n, line in lines_of(path) if deferred.search(line)
    ]
    assert none(found)


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    return enumerate(text_of(path).splitlines(), start=1)


def test_no_path_of_one_machine() -> None:
    """Folders of somebody's home or workplace mean nothing elsewhere."""
    local = re.compile(r"(?<![\w./<-])/(?:home|root|Users|work|opt|mnt)/\w")
    found = []
    for path in FILES:
        if path.suffix in {".png", ".svg", ".npy", ".npz"}:
            continue
        found += [f"{inner(path)}:{n}" for n, line in lines_of(path) if local.search(line)]
    assert none(found)


def comments_by_line(path: Path) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(text_of(path)).readline)
    return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}


def has_reason(comments: dict[int, str], line: int) -> bool:
    """On the line, above it or below it stands a comment that says something to a reader."""
    return any(
        REASON.search(DIRECTIVE.sub("", comments.get(near, ""))) for near in (line - 1, line, line + 1)
    )


def none(found: list[str]) -> bool:
    """For an assertion that shows every finding on a line of its own."""
    assert not found, "\n".join(found)
    return True


def test_broad_excepts_give_a_reason() -> None:
    """Also without one: a handler that only tidies up and raises the same again."""
    unexplained = []
    for path in PYTHON_FILES:
        comments = comments_by_line(path)
        for node in ast.walk(ast.parse(text_of(path))):
            if not isinstance(node, ast.ExceptHandler) or not is_broad(node.type):
                continue
            if not raises_the_same(node) and not has_reason(comments, node.lineno):
                unexplained.append(f"{inner(path)}:{node.lineno}")
    assert none(unexplained)


def raises_the_same(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def is_broad(caught: ast.expr | None) -> bool:
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(name is None or (isinstance(name, ast.Name) and name.id in BROAD) for name in names)


BROAD = frozenset({"Exception", "BaseException"})


def test_ignores_give_a_reason() -> None:
    """A `# type: ignore[...]` or `# noqa: ...` is followed by why, or the comment beside it says it."""
    unexplained = []
    for path in PYTHON_FILES:
        comments = comments_by_line(path)
        ignores = [
            line for line, comment in comments.items() if re.search(r"#\s*(type: ignore|noqa)", comment)
        ]
        unexplained += [f"{inner(path)}:{line}" for line in ignores if not has_reason(comments, line)]
    assert none(unexplained)


def test_any_gives_a_reason() -> None:
    """Each `Any` has its reason beside it, or one reason for the whole file stands at the import."""
    unexplained = []
    for path in PYTHON_FILES:
        comments = comments_by_line(path)
        tree = ast.parse(text_of(path))
        if any(has_reason(comments, line) for line in imports_of_any(tree)):
            continue
        uses = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "Any"]
        unexplained += [
            f"{inner(path)}:{line}" for line in sorted(set(uses)) if not has_reason(comments, line)
        ]
    assert none(unexplained)


def imports_of_any(tree: ast.Module) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and "Any" in {alias.name for alias in node.names}
    ]


def imported_roots(folder: Path) -> set[str]:
    roots: set[str] = set()
    for path in PYTHON_FILES:
        if not path.is_relative_to(folder):
            continue
        for node in ast.walk(ast.parse(text_of(path))):
            if isinstance(node, ast.Import):
                roots |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                roots.add(node.module.partition(".")[0])
    return roots


CORE_NEVER = frozenset(
    {"asyncio", "time", "random", "logging", "os", "pathlib", "secrets", "threading", "datetime"}
)


def test_the_core_imports_only_the_standard_library() -> None:
    roots = imported_roots(TREE / "src" / "tidegate" / "core") - {"tidegate"}
    assert roots <= sys.stdlib_module_names, f"third-party: {sorted(roots - sys.stdlib_module_names)}"
    assert not roots & CORE_NEVER


def test_declared_dependencies_are_the_imported_ones() -> None:
    project = tomllib.loads(text_of(TREE / "pyproject.toml"))["project"]
    declared = {re.split(r"[^\w-]", one, maxsplit=1)[0].lower() for one in project["dependencies"]}
    roots = imported_roots(TREE / "src") - sys.stdlib_module_names - {"tidegate", "tidegate_engines"}
    distributions = importlib.metadata.packages_distributions()
    imported = {
        name.lower().replace("_", "-")
        for root in roots
        for name in distributions.get(root, [f"{root} (not installed)"])
    }
    assert declared == imported


def test_one_version() -> None:
    versions = {
        tomllib.loads(text_of(TREE / part / "pyproject.toml"))["project"]["version"]
        for part in ("", "native", "native/llama")
    }
    assert versions == {tidegate.__version__}


def test_every_dependency_has_its_line_in_the_decisions() -> None:
    project = tomllib.loads(text_of(TREE / "pyproject.toml"))
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    record = text_of(TREE / "docs" / "decisions" / "0001-dependencies.md").lower()
    names = {re.split(r"[^\w-]", one, maxsplit=1)[0].lower() for one in wanted}
    assert none(sorted(name for name in names if f"| {name} |" not in record))


def test_locks_have_hashes_and_no_addresses() -> None:
    for lock in sorted((TREE / "requirements").glob("*.txt")):
        text = text_of(lock)
        assert "://" not in text and "--index" not in text, f"{lock.name} names a package index"
        for entry in re.split(r"\n(?=\w)", text.strip()):
            assert "--hash=sha256:" in entry, f"{lock.name}: {entry.splitlines()[0]} has no hash"


def test_the_readme_names_the_commands_that_ci_runs() -> None:
    commands = re.findall(r"^make \w+", text_of(TREE / "README.md"), flags=re.MULTILINE)
    assert {"make demo", "make test"} <= set(commands)
    assert "make test" in text_of(TREE / ".ci" / "run")
