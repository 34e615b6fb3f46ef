"""Rows become token blocks: what is learned, what is held out, and what is refused with its line number."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fullrank_node.errors import ExitCode, NodeError
from fullrank_node.training.blocks import IS_START, IS_TARGET, Document, pack
from fullrank_node.training.cache import BlockCache, build_cache
from fullrank_node.training.data import DataError, check_data, load_rows
from fullrank_node.training.encoding import encode_rows, preview_document
from fullrank_node.training.formats import Row, RowError, parse_row


def write_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def learned(row: Row, tokenizer: Any) -> tuple[tuple[str, bool], ...]:
    documents, unusable = encode_rows([row], tokenizer)
    assert not unusable
    return preview_document(documents[0], tokenizer)


def document(*tokens: int, learn_from: int = 0) -> Document:
    targets = np.arange(len(tokens)) >= learn_from
    return Document(tokens=np.array(tokens, np.int32), targets=targets)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "a b"}, "text"),
        ({"prompt": "a", "completion": "b"}, "prompt/completion"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "messages"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "conversations"),
        ({"instruction": "a", "input": "", "output": "b"}, "instruction/output"),
        ({"question": "a", "answer": "b"}, "question/answer"),
    ],
)
def test_every_format_is_recognised_and_learns_its_last_part(row: dict[str, Any], expected: str) -> None:
    parsed = parse_row(row, line=1)
    assert parsed.format == expected
    assert parsed.turns[-1].learn
    assert all(not turn.learn for turn in parsed.turns[:-1])


def test_an_instruction_and_its_input_are_one_question() -> None:
    row = parse_row({"instruction": "Add.", "input": "2 and 2", "output": "4"}, line=1)
    assert [turn.text for turn in row.turns] == ["Add.\n\n2 and 2", "4"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([1], "found a list, required a JSON object"),
        ({"txt": "a"}, "found keys txt; required text"),
        ({"text": 3}, "text: found a number, required a string"),
        ({"text": "  "}, "nothing to learn"),
        ({"text": "\ud800"}, "half a surrogate pair"),
        ({"messages": []}, "required a list of messages that is not empty"),
        ({"messages": [{"role": "boss", "content": "a"}]}, "found role 'boss'"),
        ({"messages": [{"role": "user", "content": "a"}]}, "nothing to learn"),
        ({"prompt": "a", "completion": ""}, "nothing to learn"),
    ],
)
def test_an_unusable_row_says_what_was_found_and_what_is_required(row: Any, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        parse_row(row, line=1)


def test_bad_lines_are_left_out_and_listed_by_number(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", {"text": "good"}, "{broken", "", {"text": None}, {"text": "good too"})
    with path.open("ab") as file:
        file.write(b'{"text": "\xff"}\n')
    rows = load_rows(path)
    assert [row.line for row in rows.train] == [1, 5]
    assert [(bad.line, bad.reason.split(":")[0].split(" at ")[0]) for bad in rows.skipped] == [
        (2, "not JSON"),
        (4, "text"),
        (6, "not UTF-8"),
    ]


def test_data_without_a_single_usable_row_is_an_error_with_line_numbers(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", "[]", "{}")
    with pytest.raises(DataError, match=r"line 1: found a list.*line 2: found keys no keys") as caught:
        load_rows(path)
    assert caught.value.exit_code == ExitCode.CONFIG
    assert [bad.line for bad in caught.value.problems] == [1, 2]


def test_empty_missing_and_undecodable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "folder").mkdir()
    for name, message in (
        ("empty.jsonl", "it is empty"),
        ("latin.txt", "not UTF-8"),
        ("folder", "no train.jsonl"),
        ("absent.jsonl", "no such data file"),
    ):
        with pytest.raises(NodeError, match=message):
            load_rows(tmp_path / name)


def test_held_out_rows_depend_on_their_words_and_not_on_their_order(tmp_path: Path) -> None:
    texts = [{"text": f"row {number}"} for number in range(400)]
    first = load_rows(write_lines(tmp_path / "a.jsonl", *texts), valid_fraction=0.1)
    second = load_rows(write_lines(tmp_path / "b.jsonl", *reversed(texts)), valid_fraction=0.1)
    words = {row.turns[0].text for row in first.valid}
    assert words == {row.turns[0].text for row in second.valid}
    assert 20 <= len(words) <= 60
    assert len(first.train) == 400 - len(words)


def test_a_directory_with_a_valid_file_is_not_split_again(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", *[{"text": f"row {number}"} for number in range(50)])
    write_lines(tmp_path / "valid.jsonl", {"text": "held out"}, "[]")
    rows = load_rows(tmp_path, valid_fraction=0.5)
    assert (len(rows.train), len(rows.valid)) == (50, 1)
    assert rows.skipped[0].reason.startswith("valid.jsonl: found a list")


def test_a_plain_text_file_is_one_document_in_sections(tmp_path: Path) -> None:
    paragraph = "word " * 300 + "\n\n"
    (tmp_path / "book.txt").write_text(paragraph * 5)
    rows = load_rows(tmp_path / "book.txt").train
    assert "".join(row.turns[0].text for row in rows) == paragraph * 5
    assert [row.is_complete for row in rows] == [False, False, True]


def test_only_the_completion_is_learned_and_the_end_with_it(tokenizer: Any) -> None:
    row = parse_row({"prompt": "the cat", "completion": " sat on"}, line=1)
    assert learned(row, tokenizer) == (("the cat", False), (" sat on<end>", True))


def test_a_token_across_the_border_is_learned(tokenizer: Any) -> None:
    row = parse_row({"prompt": "the cat ", "completion": "sat on"}, line=1)
    assert learned(row, tokenizer) == (("the cat", False), (" sat on<end>", True))


def test_without_a_template_chats_use_the_plain_form(tokenizer: Any) -> None:
    turns = [("user", "the cat"), ("assistant", "sat"), ("user", "a dog"), ("assistant", "run")]
    row = parse_row({"messages": [{"role": role, "content": text} for role, text in turns]}, line=1)
    assert learned(row, tokenizer) == (
        ("### User\nthe cat\n\n### Assistant\n", False),
        ("sat\n\n", True),
        ("### User\na dog\n\n### Assistant\n", False),
        ("run<end>", True),
    )


def with_template(tokenizer: Any, template: str) -> Any:
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


TEMPLATE = (
    "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


def test_with_a_template_every_answer_is_learned_with_its_end(tokenizer: Any) -> None:
    turns = [("user", "the cat"), ("assistant", "sat"), ("user", "a dog"), ("assistant", "run")]
    row = parse_row({"messages": [{"role": role, "content": text} for role, text in turns]}, line=1)
    assert learned(row, with_template(tokenizer, TEMPLATE)) == (
        ("<turn>user\nthe cat<end>\n<turn>assistant\n", False),
        ("sat<end>\n", True),
        ("<turn>user\na dog<end>\n<turn>assistant\n", False),
        ("run<end>\n", True),
    )


def test_words_that_look_like_control_tokens_never_become_them(tokenizer: Any) -> None:
    documents, _ = encode_rows([parse_row({"text": "a <end> b"}, line=1)], tokenizer)
    assert list(documents[0].tokens).count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(documents[0].tokens) == "a <end> b<end>"
    chat = parse_row({"instruction": "say <turn>", "output": "no"}, line=7)
    documents, unusable = encode_rows([chat], with_template(tokenizer, TEMPLATE))
    assert documents == []
    assert unusable == [(7, "the text contains the control token '<turn>'")]


def test_a_template_that_refuses_or_rewrites_makes_the_row_unusable(tokenizer: Any) -> None:
    row = parse_row({"instruction": "the cat", "output": "sat"}, line=3)
    refusing = with_template(tokenizer, "{{ raise_exception('system message required') }}")
    assert "system message required" in encode_rows([row], refusing)[1][0][1]
    rewriting = with_template(tokenizer, "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    assert "no answer can be told apart" in encode_rows([row], rewriting)[1][0][1]


def test_documents_share_a_block_without_seeing_each_other() -> None:
    blocks = pack([document(1, 2, 3, 4, 5), document(6, 7, 8)], block_length=10, pad_token=0)
    assert blocks.tokens.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 0, 0]]
    assert blocks.positions().tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1]]
    assert (blocks.flags[0] & IS_TARGET).tolist() == [0, 1, 1, 1, 1, 0, 1, 1, 0, 0]
    assert np.flatnonzero(blocks.flags[0] & IS_START).tolist() == [0, 5, 8]
    assert blocks.num_targets == 6


def test_a_long_document_is_cut_so_that_every_token_is_predicted_once() -> None:
    blocks = pack([document(*range(1, 11))], block_length=4, pad_token=0)
    assert blocks.tokens.tolist() == [[1, 2, 3, 4], [4, 5, 6, 7], [7, 8, 9, 10]]
    assert blocks.num_targets == 9


def test_pieces_without_an_answer_take_no_place() -> None:
    blocks = pack([document(*range(1, 11), learn_from=8)], block_length=4, pad_token=0)
    assert blocks.tokens.tolist() == [[7, 8, 9, 10]]
    assert blocks.num_targets == 2


def test_packing_wastes_little() -> None:
    sizes = np.random.default_rng(0).integers(3, 60, size=300)
    blocks = pack([document(*range(1, size + 1)) for size in sizes], block_length=64, pad_token=0)
    assert sizes.sum() / blocks.tokens.size > 0.95


def test_a_cache_is_reused_until_the_data_changes(tmp_path: Path, tokenizer: Any) -> None:
    path = write_lines(tmp_path / "rows.jsonl", *[{"text": f"the cat sat {number}"} for number in range(60)])
    options: dict[str, Any] = {"tokenizer_id": "t", "block_length": 16, "valid_fraction": 0.2}
    cache_path = tmp_path / "cache" / "blocks.safetensors"
    summary = build_cache(path, tokenizer, cache_path=cache_path, **options)
    made = cache_path.stat().st_ino
    assert build_cache(path, tokenizer, cache_path=cache_path, **options) == summary
    assert cache_path.stat().st_ino == made
    with BlockCache(cache_path) as cache:
        blocks = cache.read("train", np.array([2, 0]))
        assert blocks.tokens.shape == (2, 16)
        assert cache.size("valid") == summary.num_valid_blocks > 0
    write_lines(path, {"text": "one row is left"})
    assert build_cache(path, tokenizer, cache_path=cache_path, **options).num_rows == 1


def test_a_damaged_cache_is_made_again(tmp_path: Path, tokenizer: Any) -> None:
    path = write_lines(tmp_path / "rows.jsonl", {"text": "the cat sat"})
    cache_path = tmp_path / "blocks.safetensors"
    cache_path.write_bytes(b"half a fi")
    with pytest.raises(DataError, match="cannot read the data cache"):
        BlockCache(cache_path)
    options: dict[str, Any] = {"tokenizer_id": "t", "block_length": 16, "valid_fraction": 0.0}
    assert build_cache(path, tokenizer, cache_path=cache_path, **options).num_blocks == 1


def test_checking_data_reports_formats_tokens_and_what_is_learned(tmp_path: Path, tokenizer: Any) -> None:
    path = write_lines(tmp_path / "rows.jsonl", {"prompt": "the", "completion": " cat"}, "{", {"text": "sat on"})
    report = check_data(path, tokenizer)
    assert report.formats == {"prompt/completion": 1, "text": 1}
    assert [bad.line for bad in report.skipped] == [2]
    assert report.preview == (("the", False), (" cat<end>", True))
    assert report.num_tokens is not None
    assert report.num_targets is not None
    assert report.num_tokens > report.num_targets > 0
    assert check_data(path).num_tokens is None
