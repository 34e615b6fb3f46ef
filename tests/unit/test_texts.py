"""The demo's texts: each node another domain, nothing shared, code without docstrings."""

import ast
import json
from pathlib import Path

import pytest

from fullrank_node.demo import texts
from fullrank_node.demo.texts import DOMAINS, ROW_CHARACTERS, code_only, split_rows, write_texts
from fullrank_node.errors import NodeError


def rows_of(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_node_gets_a_domain_of_its_own_and_as_much_text_as_the_others(tmp_path: Path) -> None:
    written = write_texts(tmp_path, 8)

    assert written.domains == tuple(DOMAINS)
    assert len(set(written.parts)) == 8
    assert max(written.num_characters) - min(written.num_characters) <= ROW_CHARACTERS
    assert min(written.num_characters) >= 200_000


def test_no_row_is_in_two_parts_or_held_out_as_well(tmp_path: Path) -> None:
    written = write_texts(tmp_path, 8)
    # Short rows may agree by chance: `def __repr__(self): …`.
    files = [{row for row in rows_of(path) if len(row) > 500} for path in (*written.parts, written.heldout)]

    assert sum(map(len, files)) == len(set.union(*files))


def test_every_domain_in_use_has_its_share_of_the_held_out_text(tmp_path: Path) -> None:
    one = write_texts(tmp_path / "one", 1)
    three = write_texts(tmp_path / "three", 3)

    assert one.heldout_characters >= texts.HELD_OUT_CHARACTERS
    assert three.heldout_characters >= 3 * texts.HELD_OUT_CHARACTERS
    assert rows_of(three.heldout)[: len(rows_of(one.heldout))] == rows_of(one.heldout)


def test_the_same_installation_gives_the_same_files(tmp_path: Path) -> None:
    first, second = write_texts(tmp_path / "a", 2), write_texts(tmp_path / "b", 2)

    for one, other in zip((*first.parts, first.heldout), (*second.parts, second.heldout), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_rows_are_bounded(tmp_path: Path) -> None:
    written = write_texts(tmp_path, 2)

    assert all(0 < len(row) <= ROW_CHARACTERS for path in written.parts for row in rows_of(path))


def test_code_loses_docstrings_and_comments_and_nothing_else() -> None:
    source = '''"""Module."""

# A comment
x = "# no comment"  # but this


class C:
    """Class."""

    def f(self):
        """Only a docstring."""

    def g(self):
        """Docstring
        of two lines.
        """
        return x
'''
    assert code_only(source) == (
        'x = "# no comment"\n\n\nclass C:\n\n    def f(self):\n        pass\n\n    def g(self):\n        return x\n'
    )


def test_code_of_the_whole_library_still_parses() -> None:
    for path in texts.library_files()[::10]:
        source = texts.read_source(path)
        if source is not None:
            ast.parse(code_only(source))


def test_form_feeds_do_not_shift_the_lines() -> None:
    assert code_only("x = 1\n\f\ndef f():\n    # gone\n    return 2\n") == "x = 1\n\ndef f():\n    return 2\n"


def test_rows_together_are_the_code() -> None:
    code = "\n\n".join(f"value_{i} = {i}\n" for i in range(2000)) + "x = '" + "y" * 5000 + "'\n"

    assert "".join("".join(split_rows(code)).split()) == "".join(code.split())


@pytest.mark.parametrize("num_nodes", [0, 9])
def test_a_number_of_nodes_without_domains_is_a_mistake(tmp_path: Path, num_nodes: int) -> None:
    with pytest.raises(ValueError, match="required 1 to 8"):
        write_texts(tmp_path, num_nodes)


def test_a_python_without_library_sources_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "library_root", lambda: tmp_path)

    with pytest.raises(NodeError, match="found 0 characters") as caught:
        write_texts(tmp_path / "out", 3)
    assert "Python installation" in caught.value.hint
