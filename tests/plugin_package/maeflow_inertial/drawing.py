"""Windows as curves over time, drawn by Pillow alone; for a few hundred pixels."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maeflow_inertial.reading import Array

SIZE = (300, 200)
"""Pixels of a picture."""
FINER = 2
"""Curves are drawn this much larger and shrunk, which smooths them."""
LEFT, RIGHT, TOP, PANEL, GAP = 34, 8, 14, 70, 18
"""Margins, the height of a panel and the room above the second one."""
COLOURS = ("#d55e00", "#009e73", "#0072b2", "#a8adb3")
"""Axes x, y, z, in colours of Okabe and Ito's that colour-blind people tell apart, and the length of the vector."""
INK, RULE = "#3c4146", "#d8dce0"


def draw(x: Array, rate: float, units: tuple[str, str], limits: tuple[float, float]) -> bytes:
    """A PNG of (8, W) at ``rate`` samples per second, both vectors with the range of ``limits``.

    The range is fixed, so that pictures beside each other can be compared.
    """
    page = Image.new("RGB", (SIZE[0] * FINER, SIZE[1] * FINER), "white")
    pen = ImageDraw.Draw(page)
    for panel, (name, unit) in enumerate(zip(("acceleration", "rotation"), units, strict=True)):
        upper = TOP + panel * (PANEL + GAP)
        _frame(pen, upper, f"{name} ({unit})", limits[panel], legend=panel == 0)
        for channel in (6 + panel, 3 * panel, 3 * panel + 1, 3 * panel + 2):
            colour = COLOURS[3 if channel >= 6 else channel % 3]
            _curve(pen, x[channel] / limits[panel], upper, colour)
    _seconds(pen, x.shape[1] / rate)
    out = io.BytesIO()
    page.resize(SIZE, Image.Resampling.LANCZOS).save(out, "PNG")
    return out.getvalue()


def _frame(pen: ImageDraw.ImageDraw, upper: int, title: str, limit: float, *, legend: bool) -> None:
    right = SIZE[0] - RIGHT
    for level, text in ((-1.0, f"{-limit:g}"), (0.0, "0"), (1.0, f"{limit:g}")):
        y = upper + PANEL * (1 - level) / 2
        pen.line(_scaled(LEFT, y, right, y), fill=RULE, width=FINER)
        _text(pen, LEFT - 4, y, text, "rm")
    _text(pen, LEFT, upper - 2, title, "ls")
    if legend:
        for number, (name, colour) in enumerate(zip(("x", "y", "z", "length"), COLOURS, strict=True)):
            _text(pen, right - 78 + 14 * number, upper - 2, name, "ls", colour)


def _curve(pen: ImageDraw.ImageDraw, values: Array, upper: int, colour: str) -> None:
    """``values`` of -1 to 1 across a panel; NaN, what is padded, is not drawn."""
    across = np.linspace(LEFT, SIZE[0] - RIGHT, len(values))
    down = upper + PANEL * (1 - np.clip(values, -1, 1)) / 2
    points = (np.stack([across, down], axis=1)[~np.isnan(values)] * FINER).ravel().tolist()
    pen.line(points, fill=colour, width=FINER + 1, joint="curve")


def _seconds(pen: ImageDraw.ImageDraw, duration: float) -> None:
    """Ticks at whole seconds, or at the round distance that gives at most six of them."""
    lower, width = TOP + 2 * PANEL + GAP, SIZE[0] - RIGHT - LEFT
    step = next(s * 10.0**e for e in range(-4, 9) for s in (1, 2, 5) if s * 10.0**e * 6 >= duration)
    for number in range(int(duration / step) + 1):
        place = LEFT + width * number * step / duration
        pen.line(_scaled(place, lower, place, lower + 3), fill=INK, width=FINER)
        last = (number + 1) * step > duration
        _text(pen, place, lower + 5, f"{number * step:g}{' s' * last}", "ma")


def _text(pen: ImageDraw.ImageDraw, x: float, y: float, text: str, anchor: str, colour: str = INK) -> None:
    pen.text((x * FINER, y * FINER), text, fill=colour, font=ImageFont.load_default(11 * FINER), anchor=anchor)


def _scaled(*numbers: float) -> list[float]:
    return [number * FINER for number in numbers]
