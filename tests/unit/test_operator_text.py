"""The operator's manual names what the code has (node/README.md)."""

import re
from pathlib import Path

from fullrank_node import config
from fullrank_node.cli.main import INTERRUPTED
from fullrank_node.errors import ExitCode
from fullrank_node.home import Home

TEXT = (Path(__file__).parents[2] / "node" / "README.md").read_text(encoding="utf-8")


def test_every_configuration_key_is_described_with_its_default() -> None:
    described = dict(re.findall(r"^\| `([a-z_.]+)` \| (?:`(.*?)`)? ?\|", TEXT, flags=re.MULTILINE))
    assert list(described) == config.valid_keys()
    for key, value in config.flattened(config.Config()).items():
        shown = " ".join(value) if isinstance(value, list) else str("" if value is None else value)
        assert described[key].lower() == shown.lower(), key


def test_every_exit_code_is_described() -> None:
    described = {int(number) for number in re.findall(r"^\| (\d+) \|", TEXT, flags=re.MULTILINE)}
    assert described == {*ExitCode, INTERRUPTED}


def test_every_file_of_a_home_is_described() -> None:
    home = Home(Path("/home"))
    for name, attribute in vars(Home).items():
        if isinstance(attribute, property) and name.endswith(("_file", "_dir")) and name != "logs_dir":
            path = getattr(home, name).relative_to("/home")
            assert f"`{path}" in TEXT, path
