"""A small world of captioned shapes, drawn with numpy.

Takes a seed, returns pictures and captions: the world the embedded model is trained on (six colours, four shapes, four
backgrounds), the scraps its VAE also trains on, and houses, which the model has never seen and a LoRA can teach it.
Knows nothing about models.

    python -m runner.embedded.draw --houses runner/embedded/houses     # draws the demo's data set again
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Colour = tuple[int, int, int]
Field = NDArray[np.float64]  # one value per pixel, (size, size)
Picture = NDArray[np.uint8]  # (size, size, 3), RGB

CANVAS_PX = 64
COLOURS: dict[str, Colour] = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (45, 85, 220),
    "yellow": (245, 205, 45),
    "purple": (140, 60, 190),
    "orange": (245, 130, 35),
}
BACKGROUNDS: dict[str, Colour] = {
    "white": (245, 245, 245),
    "black": (25, 25, 25),
    "gray": (150, 150, 150),
    "navy": (30, 40, 90),
}
ROOF: Colour = (125, 60, 30)
DOOR: Colour = (80, 40, 20)
HELD_OUT = "green", "white"
"""No house of the data set looks like this: the demo's prompt asks for something new."""
HOUSES = 32
HOUSES_SEED = 70


def circle(x: Field, y: Field, radius: float) -> Field:
    """A disc."""
    return np.hypot(x, y) - radius


def square(x: Field, y: Field, radius: float) -> Field:
    """A square, its sides along the canvas."""
    return np.maximum(np.abs(x), np.abs(y)) - radius * 0.86


def triangle(x: Field, y: Field, radius: float) -> Field:
    """Equilateral, its tip up; the centre of gravity sits a little below the middle so that the whole looks centred."""
    lowered = y - radius * 0.15
    sides = (math.sqrt(3.0) * np.abs(x) - lowered) / 2
    return np.maximum(sides, lowered) - radius * 0.5


def star(x: Field, y: Field, radius: float) -> Field:
    """Five points: one edge from an outer tip to an inner corner, folded round the circle ten times."""
    points, outer, inner = 5, radius * 1.12, radius * 0.48
    angle = np.mod(np.arctan2(x, -y) + math.pi / points, 2 * math.pi / points) - math.pi / points
    along, across = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.abs(np.sin(angle))
    edge_x, edge_y = inner * math.cos(math.pi / points) - outer, inner * math.sin(math.pi / points)
    return ((along - outer) * edge_y - across * edge_x) / math.hypot(edge_x, edge_y)


def walls(x: Field, y: Field, radius: float) -> Field:
    """The lower part of a house."""
    return np.maximum(np.abs(x) - radius * 0.8, np.abs(y - radius * 0.35) - radius * 0.6)


def roof(x: Field, y: Field, radius: float) -> Field:
    """A flat triangle on the walls, wider than the walls."""
    slope = 0.8
    return np.maximum((slope * np.abs(x) - (y + radius * 1.1)) / math.hypot(1.0, slope), y + radius * 0.2)


def door(x: Field, y: Field, radius: float) -> Field:
    """A narrow rectangle down to the ground."""
    return np.maximum(np.abs(x) - radius * 0.22, np.abs(y - radius * 0.6) - radius * 0.35)


# Signed distances in px from the edge, negative inside; x and y are px from the shape's centre, y growing downwards.
SHAPES: dict[str, Callable[[Field, Field, float], Field]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
}


@dataclass(frozen=True)
class Scene:
    """One shape, or one house, on a plain background. Lengths in px of a 64 px canvas."""

    shape: str
    colour: str
    background: str
    radius: float
    centre: tuple[float, float]

    @property
    def caption(self) -> str:
        """The caption that the model is trained with."""
        return caption(shape=self.shape, colour=self.colour, background=self.background)

    def render(self) -> Picture:
        """The picture, 64x64 px."""
        canvas = _blank(BACKGROUNDS[self.background])
        x, y = _offsets(self.centre)
        if self.shape == "house":
            _paint(canvas, walls(x, y, self.radius), COLOURS[self.colour])
            _paint(canvas, roof(x, y, self.radius), ROOF)
            _paint(canvas, door(x, y, self.radius), DOOR)
        else:
            _paint(canvas, SHAPES[self.shape](x, y, self.radius), COLOURS[self.colour])
        return _to_picture(canvas)


def caption(*, shape: str, colour: str, background: str) -> str:
    """The sentence for a picture, such as "an orange star on a navy background"."""
    article = "an" if colour[0] in "aeiou" else "a"
    return f"{article} {colour} {shape} on a {background} background"


def random_scene(generator: np.random.Generator, *, shape: str, colour: str, background: str) -> Scene:
    """A scene of the named shape, with a random size and a roughly centred place."""
    radius = float(generator.uniform(15, 22))
    centre = generator.uniform(26, 38, size=2)
    return Scene(
        shape=shape,
        colour=colour,
        background=background,
        radius=radius,
        centre=(float(centre[0]), float(centre[1])),
    )


def draw_world(count: int, *, seed: int) -> tuple[NDArray[np.uint8], list[str]]:
    """`count` pictures of the world the model knows, (count, 64, 64, 3), and their captions."""
    generator = np.random.default_rng(seed)
    scenes = [
        random_scene(
            generator,
            shape=str(generator.choice(list(SHAPES))),
            colour=str(generator.choice(list(COLOURS))),
            background=str(generator.choice(list(BACKGROUNDS))),
        )
        for _ in range(count)
    ]
    return np.stack([scene.render() for scene in scenes]), [scene.caption for scene in scenes]


def house_scenes() -> list[Scene]:
    """The demo's houses: every colour on every background in turn, except for the held-out pair."""
    generator = np.random.default_rng(HOUSES_SEED)
    pairs = [
        (colour, background) for colour in COLOURS for background in BACKGROUNDS if (colour, background) != HELD_OUT
    ]
    order = [int(index) for _ in range(-(-HOUSES // len(pairs))) for index in generator.permutation(len(pairs))]
    return [random_scene(generator, shape="house", colour=pairs[i][0], background=pairs[i][1]) for i in order[:HOUSES]]


def draw_houses() -> NDArray[np.uint8]:
    """The pictures of the demo's data set, (32, 64, 64, 3)."""
    return np.stack([scene.render() for scene in house_scenes()])


def draw_scraps(count: int, *, seed: int) -> NDArray[np.uint8]:
    """`count` meaningless pictures, (count, 64, 64, 3): overlapping shapes of any colour, size and place.

    The VAE is trained on them as well as on the world, so that it can also encode what the world does not contain.
    """
    generator = np.random.default_rng(seed)
    palette = np.array(list(COLOURS.values()) + list(BACKGROUNDS.values()), dtype=np.float64)

    def any_colour() -> NDArray[np.float64]:
        named = generator.random() < 0.3
        return palette[generator.integers(len(palette))] if named else generator.uniform(0, 255, size=3)

    pictures = []
    for _ in range(count):
        canvas = _blank(any_colour())
        for _ in range(int(generator.integers(1, 6))):
            x, y = _offsets(tuple(generator.uniform(0, CANVAS_PX, size=2)))
            outline = SHAPES[str(generator.choice(list(SHAPES)))]
            stretch = generator.uniform(0.5, 2.0)
            _paint(canvas, outline(x * stretch, y / stretch, float(generator.uniform(4, 24))), any_colour())
        pictures.append(_to_picture(canvas))
    return np.stack(pictures)


def contact_sheet(pictures: Sequence[Picture], *, columns: int) -> Image.Image:
    """All pictures, row by row, at twice their size, with a thin gap between them."""
    gap_px, rows = 2, -(-len(pictures) // columns)
    pitch_px = CANVAS_PX + gap_px
    sheet = np.full((rows * pitch_px, columns * pitch_px, 3), 110, dtype=np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * pitch_px, index % columns * pitch_px
        sheet[top : top + CANVAS_PX, left : left + CANVAS_PX] = picture
    return Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2), Image.Resampling.NEAREST)


def write_houses(folder: Path) -> None:
    """The demo's data set: `house-00.png` ... and `metadata.jsonl`, the layout of a Hugging Face image folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, scene in enumerate(house_scenes()):
        name = f"house-{index:02d}.png"
        Image.fromarray(scene.render()).save(folder / name, optimize=True)
        lines.append(json.dumps({"file_name": name, "text": scene.caption}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


def _blank(colour: Colour | NDArray[np.float64]) -> NDArray[np.float64]:
    return np.full((CANVAS_PX, CANVAS_PX, 3), colour, dtype=np.float64)


def _offsets(centre: tuple[float, ...]) -> tuple[Field, Field]:
    rows, columns = np.mgrid[0:CANVAS_PX, 0:CANVAS_PX].astype(np.float64)
    return columns + 0.5 - centre[0], rows + 0.5 - centre[1]


def _paint(canvas: NDArray[np.float64], distance: Field, colour: Colour | NDArray[np.float64]) -> None:
    """Paint `colour` over the canvas; pixels on the edge are blended by how much of them the shape covers."""
    coverage = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
    canvas[:] = canvas * (1 - coverage) + np.asarray(colour, dtype=np.float64) * coverage


def _to_picture(canvas: NDArray[np.float64]) -> Picture:
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the demo's data set.")
    parser.add_argument(
        "--houses",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="where the PNG files and metadata.jsonl go",
    )
    write_houses(parser.parse_args().houses)
