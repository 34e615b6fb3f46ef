"""The protocol's text and its code name the same numbers (protocol/README.md)."""

import re
from pathlib import Path

from fullrank_protocol import limits
from fullrank_protocol.envelope import MAX_BYTES_OF_TYPE, type_name
from fullrank_protocol.errors import Rule
from fullrank_protocol.genesis import default_limits, default_rule, default_timing
from fullrank_protocol.identity import FIELD_PRIME, SMALL_ORDER_Y
from fullrank_protocol.wire import objects_pb2 as wire

ROOT = Path(__file__).parents[2]
ROOMS = ("protocol/fullrank_protocol", "node/fullrank_node")
TEXT = (ROOT / "protocol" / "README.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    """The text from a heading to the next one."""
    start = TEXT.index(f"\n{heading}") + 1
    return re.split(r"\n##", TEXT[start:], maxsplit=1)[0]


def rows(heading: str) -> list[list[str]]:
    """Cells of the table rows of a section, without the head."""
    lines = [line for line in section(heading).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells[1:] if not set(row[0]) <= {"-"}]


def number(text: str) -> int:
    """A number as the text writes it, 1,024 or with a proper minus sign."""
    return int(text.replace(",", "").replace("\N{MINUS SIGN}", "-"))


def test_rules_in_the_text_are_the_rules_of_the_code() -> None:
    assert [(int(row[0]), row[1]) for row in rows("## 13.")] == [(rule.value, rule.name) for rule in Rule]


def test_object_types_in_the_text_are_those_on_the_wire() -> None:
    written = [(int(row[0]), row[1]) for row in rows("### Types")]
    assert written == [(kind, type_name(kind)) for kind in wire.ObjectType.values() if kind]


def test_sizes_of_objects_in_the_text_are_those_of_the_code() -> None:
    words = {"1 KiB": 1024, "16 MiB": 16 << 20, "by genesis, at most 4 MiB": 4 << 20}
    assert {int(row[0]): words[row[-1]] for row in rows("### Types")} == MAX_BYTES_OF_TYPE


def test_limits_in_the_text_are_those_of_the_code() -> None:
    for name, value, _ in rows("## A."):
        assert number(value) == getattr(limits, name.strip("`")), name


def test_points_of_small_order_in_the_text_are_those_of_the_code() -> None:
    written = {int(found, 16) for found in re.findall(r"0x[0-9a-f]{64}", section("### Keys"))}
    assert written == SMALL_ORDER_Y - {0, 1, FIELD_PRIME - 1}


def test_domain_tags_in_the_text_are_those_of_the_code() -> None:
    code = "".join(path.read_text(encoding="utf-8") for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    assert set(re.findall(r'"(fullrank\.v1\.[a-z-]+)"', TEXT)) == set(re.findall(r'b"(fullrank\.v1\.[a-z-]+)"', code))


def test_every_rule_that_the_text_cites_exists() -> None:
    cited = {
        int(found) for group in re.findall(r"\(rules? ([0-9, and]+)\)", TEXT) for found in re.findall(r"\d+", group)
    }
    assert cited <= {rule.value for rule in Rule}


def test_defaults_in_the_text_are_those_of_the_code() -> None:
    defaults = {"timing": default_timing(), "rule": default_rule(), "limits": default_limits()}
    for name, value in rows("## B."):
        group, _, field = name.strip("`").partition(".")
        if group in defaults and re.fullmatch(r"[0-9,]+", value) and field != "outer_step":
            assert number(value) == getattr(defaults[group], field), name
    assert default_rule().outer_step.mantissa == 128
    assert default_rule().outer_step.exponent == -7


def test_sections_that_the_code_cites_exist() -> None:
    headings = set(re.findall(r"^## (\d+)\.", TEXT, flags=re.MULTILINE))
    assert headings == {str(each) for each in range(1, 15)}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for group in re.findall(r"protocol sections? ([0-9, to and]+)", path.read_text(encoding="utf-8")):
                assert set(re.findall(r"\d+", group)) <= headings, path.name


def test_links_between_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *ROOT.glob("node/*.md"), *ROOT.glob("protocol/**/*.md")]:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_module_of_the_protocol_has_its_section() -> None:
    named = {name for row in rows("## C.") for name in re.findall(r"`([a-z_]+)`", row[1])}
    modules = {path.stem for path in (ROOT / "protocol" / "fullrank_protocol").glob("*.py")} - {"__init__"}
    assert modules <= named
