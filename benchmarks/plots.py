"""Plots as SVG files, by pygal, which is imported here only: without it everything but the drawing works.

pygal places lines, ticks and words; how they look is said here, in one short style sheet that follows the reader's light or
dark mode. The same plot gives the same bytes, and nothing in a file runs or is fetched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.etree import ElementTree

from benchmarks.measure import Plot
from benchmarks.report import number

# Good on white and on GitHub's dark grey.
COLOURS = ("#2f81f7", "#db6d28", "#2da44e", "#a371f7", "#bf8700", "#e5534b", "#768390")
LEGENDS_IN_A_ROW = 3
STYLE = """
text { font: 14px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #1f2328; }
.title { text-anchor: middle; }
.plot_title { font-size: 16px; font-weight: 600; }
.axis.y text { text-anchor: end; }
.axis.x text { text-anchor: middle; }
.axis path { stroke: #d1d9e0; }
.background, .nofill { fill: none; }
.series path { stroke-width: 2; }
@media (prefers-color-scheme: dark) { text { fill: #d1d7e0; } .axis path { stroke: #3d444d; } }
"""
_NAMESPACE = "http://www.w3.org/2000/svg"
_NOT_DRAWN = {"script", "style", "desc", "defs"}
_FOR_POINTERS = {"plot text-overlay", "plot tooltip-overlay"}


def svg(plot: Plot) -> str:
    """*plot* as an SVG document."""
    import pygal  # noqa: PLC0415 - only who draws needs it
    from pygal.style import Style  # noqa: PLC0415

    place = math.log10 if plot.is_log_x else float
    rows = math.ceil(len(plot.lines) / LEGENDS_IN_A_ROW)
    # Sizes are told to pygal as well: it leaves room for words by them.
    words = Style(label_font_size=14, major_label_font_size=14, legend_font_size=14, title_font_size=16)
    chart = pygal.XY(
        style=words, js=[], dots_size=3, min_scale=4, max_scale=8,
        width=760, height=360 + 20 * rows, margin=10, margin_right=30, margin_bottom=-6 + 20 * rows,
        legend_at_bottom=True, legend_at_bottom_columns=min(len(plot.lines), LEGENDS_IN_A_ROW), legend_box_size=12,
        truncate_legend=-1,
        title=plot.title, x_title=plot.x_label, y_title=plot.y_label, value_formatter=number, allow_interruptions=True,
        range=(0, _top(plot)), x_labels=[{"label": number(x), "value": place(x)} for x in plot.x],
    )  # fmt: skip
    chart.uuid = "plot"  # else a random one
    for name, values in plot.lines.items():
        chart.add(name, _points([place(x) for x in plot.x], values))
    return _restyled(chart.render().decode(), len(plot.lines))


def _top(plot: Plot) -> float:
    """What the y axis goes up to: it begins at zero, so that heights can be compared."""
    return max((y for values in plot.lines.values() for y in values if not math.isnan(y)), default=1.0) or 1.0


def _points(places: Sequence[float], values: Sequence[float]) -> list[tuple[float, float | None]]:
    return [(x, None if math.isnan(y) else y) for x, y in zip(places, values, strict=True)]


def _restyled(document: str, lines: int) -> str:
    """*document* with our style instead of pygal's, and without what is for pointers and scripts."""
    root = ElementTree.fromstring(document)
    _prune(root)
    colours = "".join(
        f".color-{n} path, .color-{n} circle, rect.color-{n} {{ stroke: {_colour(n)}; }}\n"
        f".color-{n} circle, rect.color-{n} {{ fill: {_colour(n)}; }}\n"
        for n in range(lines)
    )
    style = ElementTree.Element(f"{{{_NAMESPACE}}}style")
    style.text = STYLE + colours
    root.insert(0, style)
    ElementTree.register_namespace("", _NAMESPACE)
    ElementTree.indent(root, "")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _prune(element: ElementTree.Element) -> None:
    """Take away, at any depth, what is never drawn; the title of the whole stays, for who cannot see it."""
    for child in list(element):
        kind = child.tag.rpartition("}")[2]
        is_hint = kind == "title" and child.text is not None and element.get("class") == "guides"
        if kind in _NOT_DRAWN or is_hint or child.get("class") in _FOR_POINTERS:
            element.remove(child)
        else:
            _prune(child)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
