"""Whose fault it is: every refusal names its rule (protocol section 13).

```
ProtocolError
├── RejectError   the sender broke a rule; an honest, correct peer never causes it
└── IgnoreError   nobody's fault: too late, already known, not yet understood
```
"""

import enum


class Rule(enum.IntEnum):
    """The rule behind a refusal. Numbers travel inside signed objects and are never reused."""

    SIGNATURE = 1
    SWARM = 2
    VERSION = 3
    SCHEMA = 4
    SIZE = 5
    MEMBERSHIP = 6
    SLOT = 7
    PARENT = 8
    SHAPE = 9
    RANK = 10
    SCALE = 11
    NON_CANONICAL = 12
    ZERO_NORM = 13
    STALE = 14
    DUPLICATE = 15
    VOTE = 16
    EVIDENCE = 17
    WEIGHTS = 18
    DIGEST = 19
    RECORD = 20
    CERTIFIERS = 21
    BLOB = 22
    CODEC = 23
    ROUND = 24
    TOKENS = 25
    NON_FINITE = 26
    POLICY = 27


def rule_name(number: int) -> str:
    """The name of a rule that a peer gives by its number; the number where this version does not know it."""
    return next((rule.name for rule in Rule if rule == number), str(number))


class ProtocolError(Exception):
    """Input that cannot be used. `detail` says what was found and what was required."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class RejectError(ProtocolError):
    """The sender broke `rule`."""

    def __init__(self, rule: Rule, detail: str) -> None:
        super().__init__(detail)
        self.rule = rule


class IgnoreError(ProtocolError):
    """Not usable now, and nobody is to blame."""
