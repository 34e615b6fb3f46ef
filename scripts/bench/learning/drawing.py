"""The picture: loss against tokens, loss against bytes, rank against rounds. Equal results give equal bytes.

Colours are after Okabe and Ito's, which people with any colour vision can tell apart, some darker to be read on white.
Nothing is told by colour alone: lines have dashes, markers and a label at their end. The ground is opaque, so that the
picture reads on a dark page, too.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from learning.report import Comparison, Row
from learning.shown import (
    Curve,
    frontier,
    full_rank,
    loss_curves,
    num_tokens,
    rank_curves,
    senders,
    size_words,
)
from learning.trial import CURVE_BLOCKS

INK = "#222222"
PALE = "#8a8a8a"
GROUND = "#ffffff"

STYLES: Mapping[str, Mapping[str, Any]] = {
    "mark": {"color": INK, "marker": "s", "linestyle": "-"},
    "ours": {"color": "#0072B2", "marker": "o", "linestyle": "-", "linewidth": 2.2},
    "adapter": {"color": "#B34E00", "marker": "^", "linestyle": "-"},
    "growing": {"color": "#6A3D9A", "marker": "D", "linestyle": "-"},
    "noise": {"color": "#0072B2", "marker": "", "linestyle": (0, (4, 2)), "linewidth": 1.2},
}
"""Of curves, by role."""

POINTS: Mapping[str, tuple[str, str]] = {
    "Parallel": (INK, "s"),
    "LocalSteps": (INK, "D"),
    "Sparse": ("#A87400", "P"),
    "FactorAveraging": ("#B0568A", "v"),
    "ResidualFolding": ("#B0568A", "<"),
    "Stacking": ("#B0568A", ">"),
    "TruncatedMean": ("#B0568A", "X"),
    "Swarm": ("#0072B2", "o"),
}
"""Colour and marker of points, by kind of arm."""

OTHER_POINT = ("#00845F", "h")

SETTINGS: Mapping[Any, Any] = {
    "svg.hashsalt": "fullrank",  # Ids in the file would be random otherwise.
    "svg.fonttype": "path",  # Labels are where they were put, whatever fonts a reader has.
    "font.family": "DejaVu Sans",  # Comes with matplotlib.
    "font.size": 8.0,
    "text.color": INK,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
}

SIZE_INCHES = (11.5, 3.8)

LINE_GAP_POINTS = 10.0
"""Between two labels at the ends of lines: their height, and some."""

_CORNERS: tuple[tuple[float, float, str, str], ...] = (
    (5, 0, "left", "center"),
    (-5, 0, "right", "center"),
    (0, 6, "center", "bottom"),
    (0, -6, "center", "top"),
    (5, 7, "left", "bottom"),
    (-5, 7, "right", "bottom"),
    (5, -7, "left", "top"),
    (-5, -7, "right", "top"),
    (0, 16, "center", "bottom"),
    (0, -16, "center", "top"),
    (16, 14, "left", "bottom"),
    (16, -14, "left", "top"),
    (-16, 14, "right", "bottom"),
    (-16, -14, "right", "top"),
    (0, 26, "center", "bottom"),
    (0, -26, "center", "top"),
)
"""Where a point's label may be: offset in points and alignment, the best first."""

NEAR_POINTS = 10.0
"""A label that is farther above or below its point than this has a line to it."""

Point = tuple[float, float, Row]
"""Bytes of a contribution, loss, and whose they are."""

COLUMN_POINTS = 3
"""So many points of one size get their labels in a column beside them."""

_LEADER = {"arrowstyle": "-", "color": PALE, "linewidth": 0.6, "shrinkA": 0.0, "shrinkB": 2.0}


def draw(comparison: Comparison) -> bytes:
    """The picture of one setting, as SVG."""
    with mpl.rc_context({**mpl.rcParamsDefault, **SETTINGS}):
        figure, (loss, size, rank) = _panels(comparison)
        _draw_losses(figure, loss, comparison)
        _draw_sizes(figure, size, comparison)
        _draw_ranks(figure, rank, comparison, kind="effective")
        return _svg(figure)


def draw_ranks(comparison: Comparison) -> bytes:
    """Numerical, stable and effective rank against rounds of one setting, as SVG."""
    with mpl.rc_context({**mpl.rcParamsDefault, **SETTINGS}):
        figure, panels = _panels(comparison)
        for axes, kind in zip(panels, ("numerical", "stable", "effective"), strict=True):
            _draw_ranks(figure, axes, comparison, kind=kind)
        return _svg(figure)


def _panels(comparison: Comparison) -> tuple[Figure, Sequence[Axes]]:
    """A figure that says which setting it is of, and its three empty panels."""
    figure = Figure(figsize=SIZE_INCHES, facecolor=GROUND)
    panels = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.04, right=0.895, bottom=0.13, top=0.79, wspace=0.56)
    setting = comparison.setting
    figure.text(0.012, 0.935, setting.title, fontsize=9.5, fontweight="bold")
    origin = f"{setting.base}, {setting.corpus}; mean over seeds, each arm at its best rate"
    measured = f"curves are measured on {CURVE_BLOCKS} test blocks, points by bytes on all"
    figure.text(0.012, 0.885, f"{origin}; {measured}", fontsize=7.5)
    return figure, panels


def _svg(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="svg", facecolor=GROUND, metadata={"Date": None, "Creator": None})
    return b"\n".join(line.rstrip() for line in file.getvalue().splitlines()) + b"\n"


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Places as near as possible to those wanted, in their order, none nearer to another than `gap`.

    Clusters that would overlap are spread evenly around the mean of their wishes.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    clusters: list[tuple[list[int], float]] = []
    for index in order:
        members, middle = [index], wanted[index]
        while clusters:
            below, their_middle = clusters[-1]
            if middle - their_middle >= gap * (len(below) + len(members)) / 2:
                break
            clusters.pop()
            members = below + members
            middle = sum(wanted[member] for member in members) / len(members)
        clusters.append((members, middle))
    found = [0.0] * len(wanted)
    for members, middle in clusters:
        for place, member in enumerate(members):
            found[member] = middle + gap * (place - (len(members) - 1) / 2)
    return found


def _draw_losses(figure: Figure, axes: Axes, comparison: Comparison) -> None:
    axes.set_title("held-out loss, by training tokens")
    axes.set_xlabel("training tokens, all nodes together")
    curves = loss_curves(comparison)
    tokens = num_tokens(comparison) / comparison.setting.rounds
    for curve in curves:
        axes.plot([tokens * number for number in range(len(curve.values))], curve.values, **STYLES[curve.role])
    axes.xaxis.set_major_formatter(lambda value, _: _counted(value))
    _label_ends(figure, axes, curves, x_end=tokens * comparison.setting.rounds)


def _draw_sizes(figure: Figure, axes: Axes, comparison: Comparison) -> None:
    axes.set_title("held-out loss, by bytes of a contribution")
    axes.set_xlabel("bytes that a node sends in a round")
    points, ahead = senders(comparison), frontier(comparison)
    if not points:
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: _counted(value) + "B")
    axes.xaxis.set_minor_formatter(lambda _value, _: "")
    axes.step(
        [point[0] for point in ahead], [point[1] for point in ahead], where="post", color=PALE, linewidth=0.8, zorder=0
    )
    axes.text(
        1.0, 1.0, "line: the least loss for so few bytes", transform=axes.transAxes, ha="right", va="top", fontsize=6.5
    )
    for num_bytes, loss, row in points:
        color, marker = POINTS.get(type(row.arm).__name__, OTHER_POINT)
        is_ours = row.arm.name == comparison.ours
        axes.plot(num_bytes, loss, color=color, marker=marker, markersize=8 if is_ours else 4.5, alpha=0.9)
    axes.margins(x=0.15, y=0.12)
    _label_points(figure, axes, points, ours=comparison.ours, labelled=_labelled(comparison, points))


def _draw_ranks(figure: Figure, axes: Axes, comparison: Comparison, *, kind: str) -> None:
    axes.set_title(f"{kind} rank of the whole change, by rounds")
    axes.set_xlabel("rounds")
    curves = rank_curves(comparison, kind)
    if not curves:
        return
    for curve in curves:
        axes.plot(range(1, len(curve.values) + 1), curve.values, **STYLES[curve.role])
    full = full_rank(comparison) if kind != "stable" else None  # Far below it.
    if full is not None:
        axes.axhline(full, color=PALE, linewidth=0.8)
        axes.annotate(
            f"at most {full:g}", (0.02, full), xycoords=("axes fraction", "data"), xytext=(0, 2),
            textcoords="offset points", color=INK, fontsize=7,
        )  # fmt: skip
    axes.set_ylim(0.0, 1.1 * max(full or 0.0, *(value for curve in curves for value in curve.values)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _label_ends(figure, axes, curves, x_end=comparison.setting.rounds)


def _label_ends(figure: Figure, axes: Axes, curves: Sequence[Curve], *, x_end: float) -> None:
    """A label right of the end of every line, in the line's colour, none over another."""
    figure.draw_without_rendering()
    points_per_pixel = 72.0 / figure.dpi
    ends = [float(axes.transData.transform((x_end, curve.values[-1]))[1]) * points_per_pixel for curve in curves]
    for curve, end, place in zip(curves, ends, apart(ends, LINE_GAP_POINTS), strict=True):
        axes.annotate(
            curve.label, (x_end, curve.values[-1]), xytext=(6, place - end), textcoords="offset points",
            color=STYLES[curve.role]["color"], va="center", annotation_clip=False, fontsize=7.5,
        )  # fmt: skip


def _labelled(comparison: Comparison, points: Sequence[Point]) -> set[str]:
    """Names of the arms whose points get a label: of those that have the same one, the arm of the least loss."""
    best: dict[str, tuple[float, str]] = {}
    for _, loss, row in points:
        words = size_words(row, ours=comparison.ours)
        best[words] = min(best.get(words, (loss, row.arm.name)), (loss, row.arm.name))
    return {name for _, name in best.values()}


def _label_points(figure: Figure, axes: Axes, points: Sequence[Point], *, ours: str, labelled: set[str]) -> None:
    """Labels beside points: right of those of one size, each other where it covers the least."""
    figure.draw_without_rendering()
    dots = [axes.transData.transform(point[:2]) for point in points]
    wanted = [point for point in points if point[2].arm.name in labelled]
    columns: dict[float, list[Point]] = {}
    for point in wanted:
        columns.setdefault(point[0], []).append(point)
    taken: list[Bbox] = []
    for column in columns.values():
        if len(column) >= COLUMN_POINTS:
            taken += _label_column(figure, axes, column, ours=ours)
    for point in wanted:
        if len(columns[point[0]]) < COLUMN_POINTS:
            taken.append(_label_point(axes, point, size_words(point[2], ours=ours), taken=taken, dots=dots))


def _label_column(figure: Figure, axes: Axes, column: Sequence[Point], *, ours: str) -> list[Bbox]:
    """Labels right of points that lie above each other, with a line to those that had to move."""
    points_per_pixel = 72.0 / figure.dpi
    heights = [float(axes.transData.transform(point[:2])[1]) * points_per_pixel for point in column]
    boxes = []
    for point, height, place in zip(column, heights, apart(heights, LINE_GAP_POINTS), strict=True):
        label = axes.annotate(
            size_words(point[2], ours=ours), point[:2], xytext=(14, place - height), textcoords="offset points",
            ha="left", va="center", color=INK, fontsize=7.5, arrowprops=dict(_LEADER),
        )  # fmt: skip
        boxes.append(label.get_window_extent())
    return boxes


def _label_point(axes: Axes, point: Point, words: str, *, taken: Sequence[Bbox], dots: Sequence[Any]) -> Bbox:
    """A label where it covers no other label, leaves its panel to the left and covers a point only if it must."""
    tried: list[tuple[int, int, Any, Bbox]] = []
    for number, (right, up, ha, va) in enumerate(_CORNERS):
        label = axes.annotate(
            words, point[:2], xytext=(right, up), textcoords="offset points", ha=ha, va=va,
            color=INK, fontsize=7.5, bbox={"facecolor": GROUND, "edgecolor": "none", "alpha": 0.75, "pad": 0.3},
        )  # fmt: skip
        box = label.get_window_extent()
        covered = 100 * box.count_overlaps(taken) + sum(bool(box.contains(x, y)) for x, y in dots)
        outside = 10 if box.x0 < axes.get_window_extent().x0 else 0
        tried.append((covered + outside, number, label, box))
    best = min(tried, key=lambda one: one[:2])
    for one in tried:
        if one is not best:
            one[2].remove()
    right, up = _CORNERS[best[1]][:2]
    if abs(up) > NEAR_POINTS:
        axes.annotate("", point[:2], xytext=(right, up), textcoords="offset points", arrowprops=dict(_LEADER), zorder=1)
    return best[3]


def _counted(value: float) -> str:
    """A number of tokens or bytes with a prefix: 250 k."""
    for factor, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:g}{prefix}"
    return f"{value:g} "
