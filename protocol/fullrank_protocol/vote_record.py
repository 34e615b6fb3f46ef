"""Every known valid vote of one certifier: the latest, and whether a new one is an offence (protocol section 8)."""

from bisect import bisect_left, insort

from fullrank_protocol.vote import Vote, is_offence


class VoteRecord:
    """Votes of one certifier, in any order of arrival.

    While there is no offence, sources never go back as targets advance. A vote then offends against any other only if
    it offends against a neighbour by target slot, so a vote costs the same after years. The record of somebody who
    has offended is searched from end to end.

    Attributes:
        latest: The vote with the highest target slot, lowest target id among equals.
        has_offended: Two of the votes are an offence.
    """

    latest: Vote
    has_offended: bool

    def __init__(self) -> None:
        self.has_offended = False
        self._votes: list[Vote] = []

    def add(self, vote: Vote) -> list[Vote]:
        """Take in a vote that is not in the record; returns those that are an offence together with it."""
        if not self._votes or _rank(vote) < _rank(self.latest):
            self.latest = vote
        at = bisect_left(self._votes, vote.target_slot, key=_target_slot)
        neighbours = self._votes[max(at - 1, 0) : at + 1]
        offences: list[Vote] = []
        if self.has_offended or any(is_offence(vote, other) for other in neighbours):
            offences = [other for other in self._votes if is_offence(vote, other)]
            self.has_offended = True
        insort(self._votes, vote, key=_target_slot)
        return offences


def _rank(vote: Vote) -> tuple[int, bytes]:
    return -vote.target_slot, vote.target


def _target_slot(vote: Vote) -> int:
    return vote.target_slot
