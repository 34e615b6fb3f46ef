"""The manuals name what the code has (README.md, node/README.md)."""

import re
from pathlib import Path

from typer.main import get_command

from fullrank_node import config
from fullrank_node.cli.main import INTERRUPTED, app
from fullrank_node.errors import ExitCode
from fullrank_node.home import Home

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "node" / "README.md").read_text(encoding="utf-8")


def test_every_configuration_key_is_described_with_its_default() -> None:
    described = dict(re.findall(r"^\| `([a-z_.]+)` \| (?:`(.*?)`)? ?\|", TEXT, flags=re.MULTILINE))
    assert list(described) == config.valid_keys()
    for key, value in config.flattened(config.Config()).items():
        shown = " ".join(value) if isinstance(value, list) else str("" if value is None else value)
        assert described[key].lower() == shown.lower(), key


def test_every_exit_code_is_described() -> None:
    described = {int(number) for number in re.findall(r"^\| (\d+) \|", TEXT, flags=re.MULTILINE)}
    assert described == {*ExitCode, INTERRUPTED}


def test_every_command_is_described() -> None:
    (table,) = re.findall(r"^## Commands\n(.*?)^## ", TEXT, flags=re.DOTALL | re.MULTILINE)
    described = set(re.findall(r"`fullrank ([a-z]+)", table))
    assert described == set(get_command(app).commands)  # type: ignore[attr-defined]


def test_every_file_of_a_home_is_described() -> None:
    home = Home(Path("/home"))
    for name, attribute in vars(Home).items():
        if isinstance(attribute, property) and name.endswith(("_file", "_dir")) and name != "logs_dir":
            path = getattr(home, name).relative_to("/home")
            assert f"`{path}" in TEXT, path


def test_every_command_and_option_in_the_manuals_exists() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for document in ("README.md", "node/README.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        fenced = "".join(re.findall(r"```(?:sh|ini)\n(.*?)```", text, flags=re.DOTALL))
        lines = re.findall(r"(?:^|/)fullrank ([a-z][^#\n]*)", fenced, flags=re.MULTILINE)
        lines += re.findall(r"`fullrank ([a-z][^`]*)`", text)
        assert len(lines) > 5
        for line in lines:
            words = line.split()
            command = commands[words[0]]
            if len(words) > 1 and words[1] in getattr(command, "commands", ()):
                command = command.commands[words[1]]
            options = {name for parameter in command.params for name in parameter.opts}
            assert {word for word in words if re.fullmatch(r"-[a-z]|--[a-z-]+", word)} <= options, line
