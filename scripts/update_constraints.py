"""Writes `constraints.txt`: the exact version of everything that an installation of this project contains.

Resolves the project, its development tools, its build backend and pip itself, without installing
anything, and writes one line for each. Versions already in the file stay, unless `--upgrade` is given.
Run it inside the environment after a change of the requirements in `pyproject.toml`:

    .venv/bin/python scripts/update_constraints.py [--upgrade]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "scripts" / "constraints.txt"

ALWAYS = ("editables", "pip", "setuptools")
"""Hatchling needs editables for an editable install, source distributions need setuptools, and all need pip."""

HEADER = """\
# The exact version of everything that scripts/quickstart and scripts/test install, build tools included.
# Made by scripts/update_constraints.py; versions are bare, so a local build of torch (such as +cpu) fits.
"""


def main() -> int:
    """Resolve and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that pyproject.toml allows")
    arguments = parser.parse_args()
    pins = resolve(keep=CONSTRAINTS.exists() and not arguments.upgrade)
    lines = [f"{name}=={version}" for name, version in sorted(pins.items())]
    CONSTRAINTS.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{CONSTRAINTS.relative_to(ROOT)}: {len(lines)} packages")
    return 0


def resolve(*, keep: bool) -> dict[str, str]:
    """Name and version of every package of a complete installation, as pip would choose them here."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    if keep:
        command += ["--constraint", str(CONSTRAINTS)]
    command += ["--group", f"{ROOT / 'pyproject.toml'}:dev", *ALWAYS, *build, str(ROOT)]
    report = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    pins = {}
    for item in report["install"]:
        metadata = item["metadata"]
        if "dir_info" not in item["download_info"]:  # Everything but this project.
            pins[canonical_name(metadata["name"])] = metadata["version"].partition("+")[0]
    return pins


def canonical_name(name: str) -> str:
    """A package's name as indexes spell it."""
    return name.lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    raise SystemExit(main())
