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
_SCALE = 4  # drawn larger and reduced, for smooth edges


@dataclass(frozen=True, slots=True)
class Drawing:
    """The picture of an item, drawn when it is opened.

    Args:
        shape: One of `SHAPES`.
        colour: One of `COLOURS`.
        seed: Decides place, size, ground and noise.
    """

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
    def corners(count: int, turn: float, radii: tuple[float, ...]) -> list[tuple[float, float]]:
        angles = [turn + 2 * math.pi * k / count for k in range(count)]
        return [
            (x + radii[k % len(radii)] * math.cos(a), y + radii[k % len(radii)] * math.sin(a))
            for k, a in enumerate(angles)
        ]

    up = -math.pi / 2
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif shape == "ring":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        draw.ellipse((x - r / 2, y - r / 2, x + r / 2, y + r / 2), fill=ground)
    elif shape == "square":
        draw.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=fill)
    elif shape == "bar":
        draw.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill=fill)
    elif shape == "cross":
        draw.rectangle((x - r, y - r / 4, x + r, y + r / 4), fill=fill)
        draw.rectangle((x - r / 4, y - r, x + r / 4, y + r), fill=fill)
    elif shape == "triangle":
        draw.polygon(corners(3, up, (r,)), fill=fill)
    elif shape == "diamond":
        draw.polygon(corners(4, up, (r, 0.65 * r)), fill=fill)
    else:
        draw.polygon(corners(10, up, (r, 0.42 * r)), fill=fill)
