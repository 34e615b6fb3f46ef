"""Growth as the soak measures it: of long-lived processes, after their own warm-up, and told when it is too much."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "scripts/bench"))

from soak_report import Life, Sample, grown_too_much, growth

HOUR_S = 3600.0


def life(node: str, *, born_s: float = 0.0, mb_at: dict[float, float], fds: int = 40) -> tuple[Life, list[Sample]]:
    samples = [Sample(at_s=born_s + age_s, rss=int(1e6 * mb), fds=fds) for age_s, mb in sorted(mb_at.items())]
    return Life(node=node, role="daemon", pid=len(mb_at), created=born_s), samples


def growing(mb_per_hour: float, *, from_s: float = 0.0) -> dict[float, float]:
    """100 MB, and so much more in every hour; before `from_s` a steep rise."""
    return {age: 100 + mb_per_hour * age / HOUR_S - max(0.0, from_s - age) / 10 for age in range(0, 3601, 60)}


def judged(*lives: tuple[Life, list[Sample]]) -> list[str]:
    return grown_too_much(growth(dict(lives), spared=["ada"], warm_up_s=600, until_s=HOUR_S), most=10)


def test_steady_processes_are_in_order() -> None:
    assert judged(life("ada", mb_at=growing(9)), life("bob", mb_at=growing(0))) == []


def test_a_spared_process_that_grows_is_told_with_its_rate() -> None:
    assert judged(life("ada", mb_at=growing(12)), life("bob", mb_at=growing(0)), life("cyd", mb_at=growing(0))) == [
        "resident memory of the daemon of ada grew by 11.2 % an hour, 10 % are allowed"
    ]


def test_the_rise_of_a_process_started_later_is_its_warm_up() -> None:
    late = life("bob", born_s=1500, mb_at={age: mb for age, mb in growing(0, from_s=600).items() if age <= 2100})
    assert judged(life("ada", mb_at=growing(0)), late, life("bob", mb_at=growing(0, from_s=600))) == []
