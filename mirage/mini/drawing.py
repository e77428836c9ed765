"""Pictures of items: a coloured shape, somewhere on a dim, noisy ground."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mirage.mini.words import COLOURS, SHAPES

SIDE_PX = 32
_RGB = {
    "red": (214, 40, 40), "green": (46, 160, 67), "blue": (38, 84, 206), "yellow": (247, 222, 58),
    "orange": (247, 138, 30), "purple": (138, 56, 184), "white": (244, 244, 244), "brown": (139, 88, 46),
}  # fmt: skip
# In units of the radius: half width and half height of boxes (a ring's inside has the ground's colour), and how far the
# corners of a polygon lie from its middle, the one on top first.
_ELLIPSES = {"circle": ((1, 1),), "ring": ((1, 1), (0.5, 0.5))}
_RECTANGLES = {"square": ((0.85, 0.85),), "bar": ((1, 1 / 3),), "cross": ((1, 0.25), (0.25, 1))}
_CORNERS = {"triangle": (1,) * 3, "diamond": (1, 0.65) * 2, "star": (1, 0.42) * 5}
_SCALE = 4  # drawn larger and reduced, for smooth edges


@dataclass(frozen=True, slots=True)
class Drawing:
    """The picture of an item, drawn when it is opened; the seed decides place, size, ground and noise."""

    shape: str
    colour: str
    seed: int

    @property
    def name(self) -> str:
        """A description that identifies the picture, such as `red-circle-17`."""
        return f"{self.colour}-{self.shape}-{self.seed}"

    def open(self) -> Image.Image:
        """The picture, RGB, `SIDE_PX` square."""
        generator = np.random.default_rng([self.seed, SHAPES.index(self.shape), COLOURS.index(self.colour)])
        side = SIDE_PX * _SCALE
        ground = tuple(int(value) for value in generator.integers(40, 90, 3))
        image = Image.new("RGB", (side, side), ground)
        radius = side * generator.uniform(0.36, 0.42)
        x, y = side / 2 + side * generator.uniform(-0.06, 0.06, 2)
        _shape(ImageDraw.Draw(image), self.shape, x, y, radius, _RGB[self.colour], ground)
        small = image.filter(ImageFilter.GaussianBlur(1)).resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
        noise = generator.normal(0, 6, (SIDE_PX, SIDE_PX, 3))
        return Image.fromarray(np.clip(np.asarray(small, dtype=float) + noise, 0, 255).astype(np.uint8))


def _shape(
    draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, fill: tuple[int, ...], ground: tuple[int, ...]
) -> None:
    def box(wide: float, high: float) -> tuple[float, float, float, float]:
        return x - wide * r, y - high * r, x + wide * r, y + high * r

    for size, colour in zip(_ELLIPSES.get(shape, ()), (fill, ground), strict=False):
        draw.ellipse(box(*size), fill=colour)
    for size in _RECTANGLES.get(shape, ()):
        draw.rectangle(box(*size), fill=fill)
    if radii := _CORNERS.get(shape, ()):
        turned = [(radius * r, -math.pi / 2 + 2 * math.pi * k / len(radii)) for k, radius in enumerate(radii)]
        draw.polygon([(x + far * math.cos(angle), y + far * math.sin(angle)) for far, angle in turned], fill=fill)
