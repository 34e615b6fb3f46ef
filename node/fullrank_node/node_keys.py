"""Names under which a home's store keeps single values."""

INVITE_KEY = "invite"
"""Secret seed of the invite that this node joins by; the daemon makes its admission from it."""

BEGUN_KEY = "begun"
"""Set where a home was founded or joined, in the database that was made then. One without it stands in for a log
that was lost, and the votes in that log with it."""

BASE_DIGEST_KEY = "base_digest"
"""Model digest of the genesis masters, 32 bytes."""

BASE_DIR_KEY = "base_dir"
"""Directory of the base model on this machine."""

BASE_STAMP_KEY = "base_stamp"
"""What the base's files looked like when every tensor was last checked."""

ADOPTED_KEY = "adopted_choice"
"""Checkpoint of the root's choice that the owner adopted, 32 bytes."""

PINNED_KEY = "pinned_final"
"""Final checkpoint that the link named, 32 bytes."""

BASE_LOSS_KEY = "base_loss"
"""Held-out loss of the base, as text."""


BELIEVED = b"\x02"
"""Verdict on a checkpoint that was not recomputed here: a snapshot gave its digest, and its votes make it final."""


def verdict_key(checkpoint: bytes) -> str:
    """Whether a checkpoint held when it was recomputed here (1, 0 or BELIEVED), or a snapshot when it was applied."""
    return f"verdict:{checkpoint.hex()}"
