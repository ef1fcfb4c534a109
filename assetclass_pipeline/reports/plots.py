"""Small plots as SVG that stands in a page and takes its colours from it.

Belongs here: drawing. Does not: what is drawn. Matplotlib is imported when something is: it takes a
second that commands and code servers which draw nothing should not wait for.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# As wide as they stand in the page, half of it or all, so that their text has the size it says.
_HALF, _WHOLE = (5.2, 2.5), (10.6, 3.0)
_AT_MOST = 5
# Up to here a bar's axis counts one by one: there is no half operation.
_FEW = 5
# More letters of names do not fit below the bars of half a page.
_MOST_LETTERS = 40
# Stand-ins that become the page's own colours, which differ in light and dark.
_INK, _FAINT, _LIMIT = "#010101", "#020202", "#030303"
_LINES = ("#0a0101", "#0a0202", "#0a0303", "#0a0404")
_COLOURS = {
    _INK: "var(--ink-2)",
    _FAINT: "var(--rule)",
    _LIMIT: "var(--bad)",
    **{colour: f"var(--line-{number})" for number, colour in enumerate(_LINES, start=1)},
}
_UNUSED_IDS = re.compile(r' id="[A-Za-z0-9]+_\d+"')


@dataclass(frozen=True)
class Series:
    """One line: its name, and its values at moments."""

    name: str
    moments: Sequence[datetime]
    values: Sequence[float]


def line_plot(
    series: Sequence[Series],
    *,
    unit: str,
    limit: float | None = None,
    ahead: Series | None = None,
    band: tuple[Sequence[float], Sequence[float]] | None = None,
    dots: bool = False,
    wide: bool = False,
) -> str:
    """Lines over time, as an `<svg>` element; empty where there is no point.

    `limit` is a dashed line across; `ahead` a dashed continuation, within `band` (low and high at
    its moments); `dots` draws points instead of lines; `wide` is for the whole width of a page.
    """
    if not any(each.moments for each in series):
        return ""
    figure, axes = _figure(_WHOLE if wide else _HALF)
    for each, colour in zip(series, _LINES, strict=False):
        marker = "o" if dots or len(each.moments) <= _AT_MOST else ""
        style = "none" if dots else "-"
        axes.plot(
            _places(each.moments),
            list(each.values),
            color=colour,
            linestyle=style,
            marker=marker,
            markersize=4,
            linewidth=1.8,
            label=each.name,
        )
    if ahead is not None:
        moments = _places(ahead.moments)
        if band is not None:
            axes.fill_between(
                moments,
                list(band[0]),
                list(band[1]),
                color=_LINES[0],
                alpha=0.18,
                linewidth=0,
            )
        axes.plot(
            moments,
            list(ahead.values),
            color=_LINES[0],
            linestyle="--",
            linewidth=1.6,
            label=ahead.name,
        )
    if limit is not None:
        axes.axhline(limit, color=_LIMIT, linestyle=(0, (4, 3)), linewidth=1)
    _over_time(axes)
    return _svg(figure, axes, unit)


def bar_plot(
    names: Sequence[str], parts: Sequence[tuple[str, Sequence[float]]], *, unit: str
) -> str:
    """Bars side by side, each stacked from `parts`: a name, and one value a bar; as `<svg>`."""
    if not any(sum(values) for _, values in parts):
        return ""
    figure, axes = _figure(_HALF)
    # Placed by number: bars of one name would stand in one place.
    places = range(len(names))
    below = [0.0] * len(names)
    for (name, values), colour in zip(parts, _LINES, strict=False):
        axes.bar(places, list(values), bottom=below, width=0.6, color=colour, label=name)
        below = [low + value for low, value in zip(below, values, strict=True)]
    every = -(-len(names) * max(map(len, names)) // _MOST_LETTERS)
    axes.set_xticks(places[::every], list(names[::every]))
    if max(below) <= _FEW:
        axes.set_yticks(range(math.ceil(max(below)) + 1))
    return _svg(figure, axes, unit)


def _places(moments: Sequence[datetime]) -> list[Any]:
    """Where they are on an axis of time, which takes them as they are; its stubs know numbers."""
    return list(moments)


def _figure(inches: tuple[float, float]) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=9, length=0)
    axes.grid(axis="y", color=_FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _over_time(axes: "Axes") -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=3, maxticks=8)  # type: ignore[no-untyped-call] # it has no types
    axes.xaxis.set_major_locator(locator)
    shown = ConciseDateFormatter(locator, show_offset=False)  # type: ignore[no-untyped-call] # it has no types
    axes.xaxis.set_major_formatter(shown)


def _svg(figure: "Figure", axes: "Axes", unit: str) -> str:
    from matplotlib import rc_context
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    if not isinstance(axes.yaxis.get_major_locator(), FixedLocator):
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.set_title(unit, loc="left", fontsize=9, color=_INK)
    handles, names = axes.get_legend_handles_labels()
    if len(handles) > 1:
        axes.legend(
            handles,
            names,
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=len(names),
            frameon=False,
            fontsize=9,
            labelcolor=_INK,
            borderaxespad=0.2,
        )
    written = io.StringIO()
    # Text stays text, in the page's font; ids are the same for the same plot.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": unit + "".join(names)}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    return _inline(written.getvalue())


def _inline(document: str) -> str:
    """The element without what only a file of its own needs."""
    element = document[document.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = _UNUSED_IDS.sub("", element)
    element = re.sub(r"font: [\d.]+px [^;\"]+", "font: 10px inherit", element)
    for stand_in, colour in _COLOURS.items():
        element = element.replace(stand_in, colour)
    head = re.compile(r'<svg ([^>]*?)width="[\d.]+pt" height="[\d.]+pt"')
    return head.sub(r'<svg role="img" \1', element, count=1).strip()


def short(value: float) -> str:
    """A number as an axis has room for it: 1.5 M."""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g} {letter}"
    return f"{value:.4g}"
