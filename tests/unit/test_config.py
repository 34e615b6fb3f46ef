"""Configuration: which source wins, and what a wrong key or value is told."""

import re
from pathlib import Path

import pytest

from fullrank_node import config
from fullrank_node.errors import ExitCode, NodeError
from fullrank_protocol.identity import SigningKey, peer_id

NO_ENVIRONMENT: dict[str, str] = {}
PEER = f"/ip4/203.0.113.7/tcp/4001/p2p/{peer_id(SigningKey.from_seed(bytes(32)).public_key)}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def load(file: Path, overrides: config.Values | None = None, **environment: str) -> config.Config:
    return config.load_config(file, overrides or {}, environment=environment)


def failure(file: Path, overrides: config.Values | None = None, **environment: str) -> NodeError:
    with pytest.raises(NodeError) as caught:
        load(file, overrides, **environment)
    assert caught.value.exit_code == ExitCode.CONFIG
    return caught.value


def test_without_any_source_the_defaults_hold(file: Path) -> None:
    assert load(file) == config.Config()
    assert load(file).limits.nice == 10


def test_flag_beats_environment_beats_file_beats_default(file: Path) -> None:
    file.write_text("[limits]\nnice = 1\n")
    assert load(file).limits.nice == 1
    assert load(file, FULLRANK_LIMITS__NICE="2").limits.nice == 2
    assert load(file, {"limits": {"nice": 3}}, FULLRANK_LIMITS__NICE="2").limits.nice == 3


def test_sources_are_merged_key_by_key(file: Path) -> None:
    file.write_text("[limits]\nnice = 1\n")
    found = load(file, FULLRANK_LIMITS__CPU_THREADS="2").limits
    assert (found.nice, found.cpu_threads) == (1, 2)


def test_an_environment_variable_can_hold_any_kind_of_value(file: Path) -> None:
    found = load(
        file,
        FULLRANK_CERTIFY="false",
        FULLRANK_TRAIN__LEARNING_RATE="1e-3",
        FULLRANK_NODE__NAME="42",
        FULLRANK_NETWORK__PEERS=f"{PEER}, {PEER}",
        FULLRANK_NETWORK__LISTEN='["/ip4/0.0.0.0/tcp/7700"]',
    )
    assert found.certify is False
    assert found.train.learning_rate == 1e-3
    assert found.node.name == "42"
    assert found.network.peers == (PEER, PEER)
    assert found.network.listen == ("/ip4/0.0.0.0/tcp/7700",)


def test_an_empty_environment_variable_sets_nothing(file: Path) -> None:
    assert load(file, FULLRANK_LIMITS__NICE="").limits.nice == 10


def test_an_unknown_key_in_the_file_names_file_and_nearest_key(file: Path) -> None:
    file.write_text("[limits]\ncpu_thread = 2\n")
    error = failure(file)
    assert str(error) == f"unknown key limits.cpu_thread in {file}"
    assert "limits.cpu_threads" in error.hint


def test_a_key_in_the_wrong_section_is_led_to_the_right_one(file: Path) -> None:
    file.write_text("cpu_threads = 2\n")
    assert "limits.cpu_threads" in failure(file).hint


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("FULLRANK_LIMITS__CPU_THREDS", "limits.cpu_threads"),
        ("FULLRANK_LIMITZ__NICE", "limits.nice"),
        ("FULLRANK_CERTFY", "certify"),
    ],
)
def test_a_misspelt_environment_variable_is_an_error(file: Path, variable: str, nearest: str) -> None:
    error = failure(file, **{variable: "1"})
    assert variable in str(error)
    assert nearest in error.hint


def test_variables_that_only_share_the_prefix_are_left_alone(file: Path) -> None:
    assert load(file, FULLRANK_HOME="/somewhere", FULLRANK_UNRELATED_THING="1") == config.Config()


def test_a_value_out_of_range_names_key_value_and_source(file: Path) -> None:
    error = failure(file, FULLRANK_LIMITS__NICE="99")
    assert "limits.nice is '99' in the environment" in str(error)
    assert "19" in str(error)


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("network.listen", "127.0.0.1:7700", "'127.0.0.1:7700' is no address like /ip4/203.0.113.7/tcp/4001"),
        ("network.listen", "/ip4/0.0.0.0/tcp/70000", "has no port from 0 to 65535"),
        ("network.listen", "/ip4/300.0.0.1/tcp/1", "does not appear to be an IPv4 or IPv6 address"),
        ("network.announce", "example.org", "is no address like"),
        ("network.peers", "/ip4/203.0.113.7/tcp/4001", "does not end in /p2p/ and a peer id"),
    ],
)
def test_an_address_that_is_none_is_refused_before_anything_starts(file: Path, key: str, text: str, words: str) -> None:
    with pytest.raises(NodeError, match="^" + re.escape(f"{key} is '{text}' in the command line: ")) as caught:
        config.set_value(file, key, text)
    assert words in str(caught.value)
    assert "value error" not in str(caught.value)
    assert caught.value.exit_code == ExitCode.CONFIG
    assert not file.exists()


def test_a_section_that_is_a_value_is_refused(file: Path) -> None:
    file.write_text("limits = 3\n")
    assert "a table of keys is required" in str(failure(file))


def test_a_file_that_is_no_toml_names_the_line(file: Path) -> None:
    file.write_text("[limits\n")
    error = failure(file)
    assert str(file) in str(error)
    assert "line 1" in str(error)


def test_relative_paths_in_the_file_are_meant_from_its_directory(file: Path) -> None:
    file.write_text('[data]\npath = "rows.jsonl"\n')
    assert load(file).data.path == file.parent / "rows.jsonl"


def test_relative_paths_in_the_environment_are_meant_from_the_current_directory(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load(file, FULLRANK_DATA__PATH="rows.jsonl").data.path == tmp_path / "elsewhere" / "rows.jsonl"


def test_what_is_written_is_what_was_set_and_no_more(file: Path) -> None:
    config.write_config(
        file,
        {
            "certify": False,
            "node": {"name": None},
            "data": {"path": Path("/rows.jsonl")},
            "network": {"listen": ("/dns/a/tcp/1",)},
        },
    )
    assert config.read_file(file) == {
        "certify": False,
        "data": {"path": "/rows.jsonl"},
        "network": {"listen": ["/dns/a/tcp/1"]},
    }


def test_setting_a_value_keeps_the_others(file: Path) -> None:
    config.write_config(file, {"limits": {"nice": 3}})
    config.set_value(file, "limits.cpu_threads", "2")
    config.set_value(file, "network.listen", "/dns/a/tcp/1,/dns/b/tcp/2")
    assert config.read_file(file) == {
        "limits": {"nice": 3, "cpu_threads": 2},
        "network": {"listen": ["/dns/a/tcp/1", "/dns/b/tcp/2"]},
    }


def test_an_empty_text_unsets(file: Path) -> None:
    config.write_config(file, {"limits": {"nice": 3, "cpu_threads": 2}})
    config.set_value(file, "limits.nice", "")
    assert config.read_file(file) == {"limits": {"cpu_threads": 2}}


@pytest.mark.parametrize(("key", "text"), [("limits.nice", "20"), ("limits.nic", "3"), ("network.peers", "[1,")])
def test_a_refused_change_leaves_the_file_as_it_was(file: Path, key: str, text: str) -> None:
    config.write_config(file, {"limits": {"nice": 3}})
    before = file.read_bytes()
    with pytest.raises(NodeError):
        config.set_value(file, key, text)
    assert file.read_bytes() == before


def test_every_key_can_be_listed_with_its_value(file: Path) -> None:
    values = config.flattened(load(file))
    assert list(values) == config.valid_keys()
    assert values["limits.nice"] == 10
    assert values["data.path"] is None
    assert config.describe("limits.nice").startswith("politeness")
