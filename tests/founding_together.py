"""`fullrank` for a swarm of several founders: `python tests/founding_together.py ME NAME,NAME,... create|join ...`.

The command itself founds a swarm alone, and adds certifiers one by one, each some slots after the other. The protocol
allows many from the start (section 3); keys that follow from names are known before anybody has a home.
"""

import sys
from typing import Any

from swarms import key_of

from fullrank_node import founding
from fullrank_node.cli.main import main
from fullrank_protocol.genesis import Genesis
from fullrank_protocol.identity import SigningKey


def found_together(me: str, names: list[str]) -> None:
    """Have this process draw the key that belongs to a name, and put all names into a genesis that it makes."""
    honest = founding.create_genesis

    def create_genesis(key: SigningKey, message: Any) -> Genesis:
        founders = sorted((key_of(name).public_key, name) for name in names)
        del message.membership.founders[:], message.membership.founder_names[:]
        message.membership.founders.extend(public_key for public_key, _ in founders)
        message.membership.founder_names.extend(name for _, name in founders)
        return honest(key, message)

    founding.create_genesis = create_genesis
    SigningKey.generate = staticmethod(lambda: key_of(me))  # type: ignore[method-assign]


if __name__ == "__main__":
    name, all_names = sys.argv[1:3]
    del sys.argv[1:3]
    found_together(name, all_names.split(","))
    main()
