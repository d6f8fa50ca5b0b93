"""Line charts as inline SVG, for a page without scripts: axes, ticks, marks of events, values on hover."""

import dataclasses
import html
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 500, 262
LEFT, RIGHT, TOP, BOTTOM = 50, 492, 36, 218  # of the plot in the drawing
MOST_POINTS = 300  # of a line, however many steps a run has
MOST_DOTS = 60
SLOTS = 60  # strips across the plot that show values on hover
SMOOTHING = 50  # the running mean spans one in this many values
LOGARITHMIC_FROM = 20.0  # ratio of the ends from which on a scale of positive values is logarithmic
OUTLIERS = 0.5  # percent of raw values on either side that need not be in sight


class Series(NamedTuple):
    """Values over steps.

    Attributes:
      name: for the legend, such as ``train``.
      kind: CSS class of its colour: ``train``, ``validation`` or ``other``.
      steps: ``[N]`` int64, increasing.
      values: ``[N]`` float64, NaN where a value was not finite.
      noisy: drawn as a smoothed line over a faint raw one, otherwise as points joined by a line.
    """

    name: str
    kind: str
    steps: np.ndarray
    values: np.ndarray
    noisy: bool


class Mark(NamedTuple):
    """An event: a vertical line with a letter above, explained beside the charts."""

    step: int
    letter: str
    text: str


@dataclasses.dataclass(frozen=True)
class Scale:
    """The range of values that a chart shows.

    Attributes:
      low: value at the lower edge.
      high: value at the upper edge, above ``low``.
      log: logarithmic; both ends are then positive.
    """

    low: float
    high: float
    log: bool

    def position(self, values: np.ndarray) -> np.ndarray:
        """Returns 0 at the lower edge, 1 at the upper; on a logarithmic scale 0 for what is not positive."""
        if not self.log:
            return (values - self.low) / (self.high - self.low)
        # NaN stays NaN: it is neither larger nor smaller.
        positive = np.where(values < self.low, self.low, values)
        return np.log(positive / self.low) / math.log(self.high / self.low)

    def ticks(self) -> list[float]:
        """Lists round numbers in the range, about four to eight of them."""
        return log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high, 5)


def panel(title: str, series: Sequence[Series], marks: Sequence[Mark], end: int, unit: str = "") -> str:
    """Draws a chart with its title and legend; steps run from 0 to ``end``.

    Args:
      title: plain text.
      series: what is drawn.
      marks: events.
      end: last step.
      unit: of the values, beside their axis; the title without one.
    """
    heading = f"<h3>{html.escape(title)}</h3>{_legend(series)}"
    lines = [smooth(one.values) if one.noisy else one.values for one in series]
    scale = choose_scale([np.concatenate(thin(one.steps, one.values)[1:]) for one in series], lines)
    if scale is None:
        return f"<figure class=panel>{heading}<p>No finite value.</p></figure>"
    drawn = [
        _grid(scale, end),
        _axis_names(unit or title),
        *(_line(one, line, scale, end) for one, line in zip(series, lines, strict=True)),
        _marks(marks, end),
        _slots(series, end),
    ]
    name = html.escape(title, quote=True)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role=img aria-label="{name}">{"".join(drawn)}</svg>'
    return f"<figure class=panel>{heading}{svg}{_left_out(series)}</figure>"


def smooth(values: np.ndarray) -> np.ndarray:
    """Averages the finite values of a running, centred window, cut off at both ends; NaN where none is.

    Args:
      values: ``[N]``.
    """
    window = np.ones(len(values) // SMOOTHING // 2 * 2 + 1)
    finite = np.isfinite(values)
    # Not by differences of running sums: after one huge value those have no digits left.
    sums = np.convolve(np.where(finite, values, 0.0), window, "same")
    counts = np.convolve(finite.astype(np.float64), window, "same")
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def thin(
    steps: np.ndarray, values: np.ndarray, most: int = MOST_POINTS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thins values to at most ``most`` groups of neighbours: first step, least and largest finite value.

    Args:
      steps: ``[N]``.
      values: ``[N]``; NaN is left out, and a group of nothing else gives NaN.
      most: groups, at least 1.

    Returns:
      Three arrays ``[n]``, ``n <= most``.
    """
    starts = np.unique(np.linspace(0, len(values), min(most, len(values)), endpoint=False).astype(np.int64))
    return steps[starts], np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)


def _line(series: Series, line: np.ndarray, scale: Scale, end: int) -> str:
    steps, low, high = thin(series.steps, line)
    main = f"<path class=line d='{_path(_x(steps, end), _y((low + high) / 2, scale))}'/>"
    if series.noisy:
        steps, low, high = thin(series.steps, series.values)
        both = np.stack([low, high], axis=1).ravel() if len(series.values) > MOST_POINTS else low
        xs = _x(np.repeat(steps, len(both) // len(steps)), end)
        main = f"<path class=raw d='{_path(xs, _y(both, scale))}'/>{main}"
    else:
        shown = np.flatnonzero(np.isfinite(line))
        points = zip(_x(series.steps[shown], end), _y(line[shown], scale), strict=True)
        if len(shown) <= MOST_DOTS:
            main += "".join(f"<circle cx='{x:.1f}' cy='{y:.1f}' r=2.5 />" for x, y in points)
    return f"<g class={series.kind}>{main}</g>"


def _path(xs: np.ndarray, ys: np.ndarray) -> str:
    """Gives path data; a NaN interrupts the line. A lone value gets a short stroke, or it would not show."""
    parts: list[str] = []
    pen = "M"
    for index, (x, y) in enumerate(zip(xs, ys, strict=True)):
        if math.isnan(y):
            pen = "M"
            continue
        alone = pen == "M" and (index + 1 == len(ys) or math.isnan(ys[index + 1]))
        parts.append(f"{pen}{x:.1f} {y:.1f}" + ("h1" if alone else ""))
        pen = "L"
    return "".join(parts)


def _x(steps: np.ndarray, end: int) -> np.ndarray:
    return LEFT + (RIGHT - LEFT) * np.asarray(steps, np.float64) / max(end, 1)


def _y(values: np.ndarray, scale: Scale) -> np.ndarray:
    """Positions from the top; what is beyond the scale lies on its edge."""
    return BOTTOM - (BOTTOM - TOP) * np.clip(scale.position(np.asarray(values, np.float64)), 0, 1)


def _grid(scale: Scale, end: int) -> str:
    parts = []
    for tick in scale.ticks():
        y = float(_y(np.array(tick), scale))
        parts.append(f"<path class=grid d='M{LEFT} {y:.1f}H{RIGHT}'/>")
        parts.append(f"<text x={LEFT - 7} y='{y + 4:.1f}' text-anchor=end>{label(tick)}</text>")
    for tick in linear_ticks(0, max(end, 1), 5):
        x = float(_x(np.array(tick), end))
        # A label at the right edge would stand out of the drawing.
        anchor = "end" if x > RIGHT - 12 else "middle"
        parts.append(f"<path class=grid d='M{x:.1f} {BOTTOM}v4'/>")
        parts.append(f"<text x='{x:.1f}' y={BOTTOM + 18} text-anchor={anchor}>{label(tick)}</text>")
    return "".join(parts) + f"<path class=axis d='M{LEFT} {BOTTOM}H{RIGHT}'/>"


def _axis_names(unit: str) -> str:
    """Names the axis of values, above it, and that of steps."""
    return (
        f"<text x=2 y=14>{html.escape(unit)}</text>"
        f"<text x='{(LEFT + RIGHT) / 2:g}' y={BOTTOM + 38} text-anchor=middle>training step</text>"
    )


def _marks(marks: Sequence[Mark], end: int) -> str:
    parts, free = [], -math.inf
    for mark in marks:
        x = float(_x(np.array(mark.step), end))
        letter_x = free = max(x, free + 11)  # letters of near events stand side by side
        parts.append(f"<path class=mark d='M{x:.1f} {TOP - 4}V{BOTTOM}'/>")
        parts.append(
            f"<text class=letter x='{letter_x:.1f}' y={TOP - 8} text-anchor=middle>{mark.letter}</text>"
        )
    return "".join(parts)


def _slots(series: Sequence[Series], end: int) -> str:
    """Returns invisible strips whose titles tell the values at their steps."""
    edges = np.linspace(0, max(end, 1), min(SLOTS, max(end, 1)) + 1)
    width = (RIGHT - LEFT) / (len(edges) - 1)
    parts = []
    for index, (first, last) in enumerate(itertools.pairwise(edges)):
        texts = [text for one in series if (text := _within(one, first, last, index == 0))]
        if texts:
            x = LEFT + index * width
            title = html.escape("\n".join(texts))
            parts.append(
                f"<rect class=slot x='{x:.1f}' y={TOP} width='{width:.1f}' height={BOTTOM - TOP}>"
                f"<title>{title}</title></rect>"
            )
    return "".join(parts)


def _within(series: Series, first: float, last: float, with_first: bool) -> str:
    """Returns what a series says after step ``first`` up to ``last``."""
    start = np.searchsorted(series.steps, first, side="left" if with_first else "right")
    stop = np.searchsorted(series.steps, last, side="right")
    steps, values = series.steps[start:stop], series.values[start:stop]
    finite = np.isfinite(values)
    if not finite.any():
        return ""
    steps, values = steps[finite], values[finite]
    if not series.noisy or len(values) == 1:
        return f"{series.name}: {values[-1]:.4g} at step {steps[-1]:,}"
    return f"{series.name}: mean {values.mean():.4g} of steps {steps[0]:,} to {steps[-1]:,}"


def _legend(series: Sequence[Series]) -> str:
    keys = []
    for one in series:
        finite = one.values[np.isfinite(one.values)]
        last = f" <b>{finite[-1]:.4g}</b>" if len(finite) else ""
        keys.append(f"<span class='key {one.kind}'><i></i>{html.escape(one.name)}{last}</span>")
    return f"<div class=legend>{''.join(keys)}</div>"


def _left_out(series: Sequence[Series]) -> str:
    count = sum(int((~np.isfinite(one.values)).sum()) for one in series)
    return f"<figcaption>{count:,} values were not finite and are left out</figcaption>" if count else ""


def choose_scale(raw: Sequence[np.ndarray], lines: Sequence[np.ndarray]) -> Scale | None:
    """Chooses a scale that holds the whole of the lines, and the raw values but for outliers.

    It is logarithmic where all values are positive and their range is wide; a linear one begins at 0
    where that costs little.

    Args:
      raw: values as they were recorded, NaN for none.
      lines: what is drawn in full.

    Returns:
      None if there is no finite value.
    """
    shown = np.concatenate([values[np.isfinite(values)] for values in lines])
    everything = np.concatenate([values[np.isfinite(values)] for values in raw])
    if not len(shown) or not len(everything):
        return None
    bounds = np.percentile(everything, [OUTLIERS, 100 - OUTLIERS])
    low, high = float(min(shown.min(), bounds[0])), float(max(shown.max(), bounds[1]))
    if everything.min() > 0 and high / low >= LOGARITHMIC_FROM:
        pad = (high / low) ** 0.05
        return Scale(low / pad, high * pad, True)
    if low == high:
        pad = abs(low) * 0.1 or 1.0
        return Scale(low - pad, high + pad, False)
    pad = (high - low) * 0.05
    if 0 <= low < 0.3 * high:
        return Scale(0.0, high + pad, False)
    return Scale(low - pad, high + pad, False)


def linear_ticks(low: float, high: float, about: int) -> list[float]:
    """Lists about ``about`` multiples of 1, 2, 2.5 or 5 times a power of ten from ``low`` to ``high``."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Lists powers of ten from ``low`` to ``high``, with 2 and 5 times them where those are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = math.log10(high / low)
    if decades < 3.5:
        candidates = [m * 10.0**power for power in powers for m in (1, 2, 5)]
    else:
        every = math.ceil(decades / 7)
        candidates = [10.0**power for power in powers if power % every == 0]
    return [tick for tick in candidates if low <= tick <= high]


def label(value: float) -> str:
    """Writes a tick's number, short: ``20k``, ``0.05``, ``1e-5``."""
    size = abs(value)
    for least, factor, suffix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if least <= size < 1e12:
            return f"{value / factor:.6g}{suffix}"
    if 0 < size < 1e-3:
        mantissa, _, power = f"{value:.4e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:.6g}".replace("e+", "e")


STYLE = """
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr));gap:22px 28px}
.panel h3{font-size:14px;font-weight:600;margin:0;float:left}
.legend{display:flex;justify-content:flex-end;flex-wrap:wrap;gap:0 14px;min-height:22px;font-size:13px;
color:var(--soft)}
.legend b{color:var(--ink);font-weight:600}.panel p{color:var(--soft);clear:both}
.train{--colour:var(--accent)}.validation{--colour:var(--second)}.other{--colour:var(--third)}
.key i{display:inline-block;width:14px;height:3px;border-radius:2px;margin:0 6px 4px 0;
background:var(--colour)}
path{fill:none}.line{stroke:var(--colour);stroke-width:1.8;stroke-linejoin:round}
.raw{stroke:var(--colour);stroke-width:.8;opacity:.3}circle{fill:var(--colour)}
.grid{stroke:var(--line)}.axis{stroke:var(--soft)}
.mark{stroke:var(--soft);stroke-dasharray:3 3}
.panel svg text{font-size:12px;font-variant-numeric:tabular-nums}
.panel svg .letter{font-size:11px;font-weight:600;fill:var(--ink)}
.slot{fill:transparent}.slot:hover{fill:var(--soft);opacity:.18}
.events{color:var(--soft);font-size:13px;margin:0 0 14px;padding:0;list-style:none;display:flex;
flex-wrap:wrap;gap:2px 22px}.events b{color:var(--ink)}
"""
