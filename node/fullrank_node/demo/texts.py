"""The demo's texts: code of Python's standard library, one part of it for each node, and a part for nobody.

Every Python installation has them, so the demo needs no download. Docstrings and comments are cut out: the embedded
base was trained on those (`scripts/make_demo_base.py`), and the volunteers are to teach it something else. Nothing
here depends on where Python is installed, on optional packages (tests, Tk, IDLE) or on the order of a directory.
"""

import ast
import hashlib
import io
import json
import sysconfig
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fullrank_node.errors import NodeError

ROW_CHARACTERS = 2_000
"""Most characters of one row. A row is about two blocks of 256 tokens, so no row dominates a small packed set."""

PART_CHARACTERS = 240_000
"""Most characters of one node's part: about 90,000 tokens, several rounds of a demo without repeating. Every domain
of Python 3.11 to 3.13 has as much, so the parts come out equal."""

HELD_OUT_CHARACTERS = 24_000
"""Characters held out of each domain: about 9,000 tokens, evaluated by a small model in a second."""

MIN_ROW_CHARACTERS = 40
"""A remainder shorter than this teaches nothing."""

DOMAINS: dict[str, tuple[str, ...]] = {
    "concurrency": ("asyncio", "concurrent", "multiprocessing", "subprocess", "threading", "selectors", "queue"),
    "web and mail": ("email", "http", "urllib", "smtplib", "mailbox", "ftplib", "imaplib", "wsgiref", "socketserver"),
    "formats": (
        "xml",
        "html",
        "json",
        "xmlrpc",
        "plistlib",
        "csv",
        "configparser",
        "tomllib",
        "pickle",
        "pickletools",
        "string",
        "textwrap",
        "difflib",
        "base64",
        "quopri",
    ),
    "testing": (
        "unittest",
        "doctest",
        "pdb",
        "bdb",
        "trace",
        "traceback",
        "pstats",
        "cProfile",
        "profile",
        "timeit",
        "tracemalloc",
        "warnings",
        "linecache",
        "code",
        "codeop",
    ),
    "files": (
        "tarfile",
        "zipfile",
        "shutil",
        "pathlib",
        "tempfile",
        "_pyio",
        "gzip",
        "bz2",
        "lzma",
        "os",
        "ntpath",
        "posixpath",
        "genericpath",
        "glob",
        "fnmatch",
        "filecmp",
        "fileinput",
        "stat",
        "zipapp",
        "zipimport",
        "_compression",
        "shelve",
        "dbm",
    ),
    "language": (
        "importlib",
        "inspect",
        "ast",
        "dis",
        "typing",
        "enum",
        "dataclasses",
        "functools",
        "tokenize",
        "types",
        "re",
        "abc",
        "contextlib",
        "copy",
        "keyword",
        "opcode",
        "symtable",
        "pkgutil",
        "modulefinder",
        "runpy",
        "weakref",
    ),
    "numbers": (
        "_pydecimal",
        "datetime",
        "_pydatetime",
        "statistics",
        "fractions",
        "random",
        "collections",
        "_collections_abc",
        "ipaddress",
        "heapq",
        "numbers",
        "calendar",
        "uuid",
        "bisect",
        "zoneinfo",
        "_strptime",
        "colorsys",
        "graphlib",
        "hashlib",
        "hmac",
        "secrets",
    ),
    "tools": (
        "argparse",
        "optparse",
        "logging",
        "getopt",
        "cmd",
        "gettext",
        "locale",
        "platform",
        "sysconfig",
        "venv",
        "pydoc",
        "ctypes",
        "webbrowser",
        "turtle",
        "compileall",
        "py_compile",
        "site",
        "sched",
        "shlex",
        "pprint",
        "getpass",
        "rlcompleter",
        "curses",
        "ssl",
    ),
}
"""Name of each domain and the top-level modules in it. The n-th node of a demo gets the n-th domain."""

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "_bundled", "pgen2"}
_TABLES = {"encodings", "pydoc_data", "entities.py", "locale.py", "_pytestplugin.py", "turtledemo"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoTexts:
    """What `write_texts` wrote.

    Attributes:
        parts: One JSON Lines file per node, rows `{"text": …}`.
        heldout: Rows of the same domains out of files that no part contains.
        domains: Name of each part's domain.
        num_characters: Characters of each part.
        heldout_characters: Characters of the held-out file.
    """

    parts: tuple[Path, ...]
    heldout: Path
    domains: tuple[str, ...]
    num_characters: tuple[int, ...]
    heldout_characters: int


def library_root() -> Path:
    """Directory of the standard library's Python files, also from inside a virtual environment."""
    return Path(sysconfig.get_path("stdlib"))


def library_files() -> list[Path]:
    """The library's Python files without tests, installed packages and generated tables, in name order."""
    root = library_root()
    found = []
    for path in root.rglob("*.py"):
        parts = set(path.relative_to(root).parts)
        if parts.isdisjoint(_NOT_LIBRARY | _TABLES) and not _is_generated(path.relative_to(root)):
            found.append(path)
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _is_generated(relative: Path) -> bool:
    """Files that describe one build of Python, not the library."""
    return relative.name.startswith("_sysconfigdata") or relative.parts[0].startswith("config-")


def read_source(path: Path) -> str | None:
    """Text of a Python file in its declared encoding; None if it cannot be read or parsed."""
    try:
        with tokenize.open(path) as file:
            source = file.read()
        ast.parse(source)
    except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
        return None
    return source


def code_only(source: str) -> str:
    """Cuts docstrings and comments out of parsable code; the result parses too.

    A body that was only a docstring becomes `pass`; runs of empty lines become at most two.
    """
    # Form feeds are white space to Python; only "\n" counts its lines, which str.splitlines() would not respect.
    lines: list[str | None] = list(source.replace("\f", " ").split("\n"))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            code = token.line[:column].rstrip()
            lines[row - 1] = code if code.strip() else None
    for first, last, replacement in _docstring_lines(ast.parse(source)):
        lines[first - 1 : last] = [replacement] + [None] * (last - first)
    kept: list[str] = []
    for line in lines:
        if line is not None and (line.strip() or kept[-2:] != ["", ""]):
            kept.append(line.rstrip())
    return "\n".join(kept).strip("\n") + "\n"


def split_rows(code: str) -> Iterator[str]:
    """Cuts code into rows of at most `ROW_CHARACTERS`, at empty lines where there are any."""
    row = ""
    for paragraph in code.split("\n\n"):
        text = paragraph.rstrip() + "\n"
        if row and len(row) + 1 + len(text) > ROW_CHARACTERS:
            yield row
            row = ""
        row = f"{row}\n{text}" if row else text
        while len(row) > ROW_CHARACTERS:
            cut = row.rfind("\n", 0, ROW_CHARACTERS) + 1 or ROW_CHARACTERS
            yield row[:cut]
            row = row[cut:]
    yield row


def write_texts(directory: Path, num_nodes: int) -> DemoTexts:
    """Writes one part for each node and a held-out part into `directory`.

    The files of a domain are ordered by a hash of their names; the first ones are held out, the next ones make the
    part, and every part is cut to the length of the shortest. No file is in two parts.

    Args:
        directory: Made if it is missing; existing files of the same names are replaced.
        num_nodes: 1 to 8, one domain each.

    Raises:
        NodeError: The installation has no readable library sources.
        ValueError: `num_nodes` is outside 1 to 8.
    """
    if not 1 <= num_nodes <= len(DOMAINS):
        raise ValueError(f"found {num_nodes} nodes, required 1 to {len(DOMAINS)}")
    domains = tuple(DOMAINS)[:num_nodes]
    files = library_files()
    split = [_domain_rows(DOMAINS[domain], files) for domain in domains]
    shortest = min(sum(len(row) for row in rows) for _, rows in split)
    if shortest < HELD_OUT_CHARACTERS:
        raise NodeError(
            f"found {shortest} characters of library code under {library_root()}, required {HELD_OUT_CHARACTERS}",
            hint="Use a Python installation that includes the standard library's .py files.",
        )
    directory.mkdir(parents=True, exist_ok=True)
    parts: list[Path] = []
    sizes: list[int] = []
    held_out: list[str] = []
    for number, (domain, (held_out_rows, rows)) in enumerate(zip(domains, split, strict=True), start=1):
        chosen = list(_up_to(rows, min(shortest, PART_CHARACTERS)))
        path = directory / f"part-{number}-{domain.replace(' ', '-')}.jsonl"
        _write_rows(path, chosen)
        parts.append(path)
        sizes.append(sum(map(len, chosen)))
        held_out.extend(_up_to(held_out_rows, HELD_OUT_CHARACTERS))
    heldout_path = directory / "heldout.jsonl"
    _write_rows(heldout_path, held_out)
    return DemoTexts(
        parts=tuple(parts),
        heldout=heldout_path,
        domains=domains,
        num_characters=tuple(sizes),
        heldout_characters=sum(map(len, held_out)),
    )


def _docstring_lines(tree: ast.AST) -> Iterator[tuple[int, int, str | None]]:
    """Yields (first line, last line, replacement) of docstrings that have their lines for themselves."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is None:
            continue
        first = node.body[0]
        alone = isinstance(node, ast.Module) or first.lineno > node.lineno
        following = node.body[1] if len(node.body) > 1 else None
        last = first.end_lineno or first.lineno
        if alone and (following is None or following.lineno > last):
            needs_body = following is None and not isinstance(node, ast.Module)
            yield first.lineno, last, " " * first.col_offset + "pass" if needs_body else None


def _domain_rows(modules: Sequence[str], files: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Rows of one domain as (held-out, training), never from the same file."""
    root = library_root()
    names = set(modules)
    mine = [path for path in files if path.relative_to(root).parts[0].removesuffix(".py") in names]
    mine.sort(key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest())
    held_out: list[str] = []
    training: list[str] = []
    for path in mine:
        source = read_source(path)
        if source is None:
            continue
        rows = [row for row in split_rows(code_only(source)) if len(row) >= MIN_ROW_CHARACTERS]
        if sum(map(len, held_out)) < HELD_OUT_CHARACTERS:
            # A few rows of each file: many files speak for the domain better than one long one.
            held_out.extend(_up_to(rows, HELD_OUT_CHARACTERS // 4))
        else:
            training.extend(rows)
    return held_out, training


def _up_to(rows: Sequence[str], num_characters: int) -> Iterator[str]:
    """Yields rows until together they have `num_characters`; the last one may pass the mark."""
    total = 0
    for row in rows:
        if total >= num_characters:
            return
        total += len(row)
        yield row


def _write_rows(path: Path, rows: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in rows)
