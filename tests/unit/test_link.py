"""Links: what people paste, and what is wrong with what they paste."""

import pytest
from swarms import id_of, key_of, seed_of

from fullrank_protocol.errors import RejectError, Rule
from fullrank_protocol.identity import peer_id
from fullrank_protocol.link import Link, parse_link

SWARM = id_of("swarm")
ADA = f"/ip4/192.0.2.1/tcp/4001/p2p/{peer_id(key_of('ada').public_key)}"
BOB = f"/ip6/2001:db8::1/udp/4001/quic-v1/p2p/{peer_id(key_of('bob').public_key)}"
RELAYED = f"{ADA}/p2p-circuit/p2p/{peer_id(key_of('bob').public_key)}"


def test_a_link_reads_as_protocol_section_3_says() -> None:
    link = Link(swarm=SWARM, peers=(ADA, BOB), invite=seed_of("invite"), final=id_of("final"))
    assert str(link) == (
        f"fullrank:{SWARM.hex()}?peer={ADA}&peer={BOB}&invite={seed_of('invite').hex()}&final={id_of('final').hex()}"
    )
    assert parse_link(str(link)) == link


def test_a_swarm_id_alone_is_a_link() -> None:
    link = parse_link(f"fullrank:{SWARM.hex()}")
    assert link == Link(swarm=SWARM)
    assert str(link) == f"fullrank:{SWARM.hex()}"


def test_pasting_does_no_harm() -> None:
    link = Link(swarm=SWARM, peers=(ADA, RELAYED))
    assert parse_link(f"  {link}\n") == link
    assert parse_link(str(link).replace("/", "%2F")) == link
    assert parse_link(str(link).replace(SWARM.hex(), SWARM.hex().upper())) == link
    assert parse_link(f"{link}&peer={ADA}") == link, "a peer named twice counts once"


def test_the_secret_shows_in_the_link_only() -> None:
    link = Link(swarm=SWARM, peers=(ADA,), invite=seed_of("invite"))
    assert seed_of("invite").hex() not in repr(link)
    assert repr(seed_of("invite")) not in repr(link)
    assert link.without_invite() == Link(swarm=SWARM, peers=(ADA,))
    assert link.invite_key() == key_of("invite").public_key
    assert link.without_invite().invite_key() is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "begins with 'fullrank:'"),
        ("https://example.org", "begins with 'fullrank:'"),
        ("fullrank:", "swarm id has 0 characters, 64 hexadecimal digits required"),
        (f"fullrank:{SWARM.hex()[:-1]}", "swarm id has 63 characters"),
        (f"fullrank:{SWARM.hex()[:-1]}g", "64 hexadecimal digits required"),
        (
            f"fullrank:{SWARM.hex()[:-2]}\N{ARABIC-INDIC DIGIT ZERO}\N{ARABIC-INDIC DIGIT ZERO}",
            "64 hexadecimal digits required",
        ),
        (f"fullrank:{SWARM.hex()}?peer=", "not a multiaddress"),
        (f"fullrank:{SWARM.hex()}?peer=192.0.2.1:4001", "not a multiaddress"),
        (f"fullrank:{SWARM.hex()}?peer={ADA[:-1]}", "not a libp2p peer id"),
        (
            f"fullrank:{SWARM.hex()}?peer=/ip4/192.0.2.1/tcp/4001/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
            "p2p",
        ),
        (f"fullrank:{SWARM.hex()}?peer=/a%26b", "not a plain multiaddress"),
        (f"fullrank:{SWARM.hex()}?peer=/{'a' * 200}", "201 bytes, at most 200"),
        (f"fullrank:{SWARM.hex()}?invite=abc", "invite has 3 characters"),
        (f"fullrank:{SWARM.hex()}?final=", "final has 0 characters"),
        (f"fullrank:{SWARM.hex()}?invite={SWARM.hex()}&invite={SWARM.hex()}", "names invite twice"),
        (f"fullrank:{SWARM.hex()}?colour=red", "unknown part 'colour'"),
        (f"fullrank:{SWARM.hex()}?", None),
        (f"fullrank:{SWARM.hex()}?&", "unknown part ''"),
        (f"fullrank:{SWARM.hex()}?" + "&".join(f"peer=/ip4/192.0.2.{i}/tcp/1" for i in range(17)), "17 peers"),
        ("fullrank:" + "0" * 5000, "5009 characters"),
    ],
)
def test_a_wrong_link_names_the_part_that_is_wrong(text: str, words: str | None) -> None:
    if words is None:
        assert parse_link(text) == Link(swarm=SWARM)
        return
    with pytest.raises(RejectError, match=words) as caught:
        parse_link(text)
    assert caught.value.rule is Rule.SCHEMA
