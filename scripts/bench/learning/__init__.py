"""The quality benchmark: ways of learning together, compared at equal data (`scripts/bench/quality.py`).

From the ground up: `corpus` (texts as blocks), `setting` (what all arms have in common, and one trial of one arm),
`bench` (base, corpus and model in memory), `run` (one trial at work: the one training loop), `arms_*` (the ways of
learning), `catalogue` (which are compared by default), `ranks`, `trial` (one trial to one line), `plan` (which
trials are missing), `store` (lines on disk), `paired` and `report` (what they say), `shown` and `drawing`
(README's picture of it).
"""
