"""What a founder gets without choosing (protocol sections 3 and 7)."""

from fullrank_protocol.scaled import Scaled
from fullrank_protocol.wire import objects_pb2 as wire

DAY_MS = 86_400_000
"""A day."""


def default_timing(*, slot_window_ms: int = 300_000) -> wire.Timing:
    """Five-minute slots; a grace of a tenth of the window, at most 15 s, in which a proposal travels.

    A chain is stalled after a day without finality, and 64 slots at least: a night offline retires nobody.
    """
    return wire.Timing(
        slot_window_ms=slot_window_ms,
        grace_ms=max(1, min(15_000, slot_window_ms // 10)),
        stall_slots=max(64, -(-DAY_MS // slot_window_ms)),
    )


def default_training() -> wire.Training:
    """Mode B at rank 64 with 2-bit integers, A kept for fifteen rounds: what learned best for its bytes."""
    return wire.Training(
        mode=wire.MODE_B,
        rank=64,
        bits_b=2,
        bits_a=4,
        learning_rate_nano=2_000_000,
        warmup_steps=5,
        max_steps=200,
        batch_size=4,
        block_length=512,
        period_rounds=15,
        total_rounds=0,
    )


def default_rule() -> wire.AggregationRule:
    """Clip to the cohort's median norm, geometric median in eight steps, at most 1.5 times the median of nine."""
    return wire.AggregationRule(
        max_contributions=64,
        token_cap=1 << 19,
        max_staleness_rounds=3,
        duplicate_cosine_micro=500_000,
        weiszfeld_steps=8,
        update_norm_cap_milli=1500,
        trailing_rounds=9,
        outer_step=Scaled.of(1.0).to_wire(),
        open_share_micro=200_000,
    )


def default_limits() -> wire.Limits:
    """Deltas up to 256 MiB, checkpoints up to 1 MiB, scales far beyond what training produces."""
    return wire.Limits(
        max_delta_bytes=256 << 20, min_scale_exponent=-40, max_scale_exponent=0, max_checkpoint_bytes=1 << 20
    )
