"""The checked-in message code is what the checked-in proto files give."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WIRE = Path("fullrank_protocol") / "wire"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with freshly generated code."""
    folder = tmp_path_factory.mktemp("wire")
    command = [str(ROOT / "scripts" / "make_wire"), str(folder)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHON": sys.executable})
    return folder / WIRE


@pytest.mark.parametrize("name", ["objects_pb2.py", "objects_pb2.pyi", "peer_pb2.py", "peer_pb2.pyi"])
def test_generated_code_is_up_to_date(made: Path, name: str) -> None:
    assert (ROOT / "protocol" / WIRE / name).read_bytes() == (made / name).read_bytes(), "run scripts/make_wire"


def test_every_generated_file_has_its_proto_file(made: Path) -> None:
    assert sorted(path.name for path in made.iterdir()) == sorted(
        path.name for path in (ROOT / "protocol" / WIRE).glob("*_pb2.py*")
    )
