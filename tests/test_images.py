"""The only module that opens pictures: what it opens, what it refuses, and what that costs."""

from __future__ import annotations

import ast
import io
import os
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image, ImageFile

import mirage
from mirage.images import BytesImage, FileImage, ImageError, image_issues, resolve_image
from mirage.schema import Picture

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def gradient() -> Image.Image:
    """A picture whose pixels differ, so that cut-off data is missed."""
    picture = Image.new("RGB", (64, 48))
    picture.putdata([(x * 4 % 256, y * 5 % 256, x * y * 7 % 256) for y in range(48) for x in range(64)])
    return picture


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(wide: int, high: int, extra: bytes = b"") -> bytes:
    """A PNG whose header claims a size, in a few bytes."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", wide, high, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + extra + png_chunk(b"IDAT", zlib.compress(bytes(99))) + png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_is_known_by_its_content_not_its_ending(tmp_path: Path, kind: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "picture.txt").write_bytes(solid("RGB", (200, 30, 40), kind, (5, 7)))
    picture: Picture = FileImage(tmp_path, "sub/picture.txt")
    opened = pickle.loads(pickle.dumps(picture)).open()
    assert (opened.mode, opened.size) == ("RGB", (5, 7))
    assert all(abs(got - want) <= 4 for got, want in zip(opened.getpixel((2, 3)), (200, 30, 40), strict=True))


def solid(mode: str, colour: Any, kind: str = "PNG", size: tuple[int, int] = (8, 8), **options: object) -> bytes:
    return encoded(Image.new(mode, size, colour), kind, **options)


def palette(**options: object) -> bytes:
    picture = Image.new("P", (1, 1), 0)
    picture.putpalette([9, 9, 9])
    return encoded(picture, "PNG", **options)


def turned(exif: Any) -> bytes:
    """A picture of 20 x 10, its left half black."""
    picture = Image.new("RGB", (20, 10), "white")
    picture.paste((0, 0, 0), (0, 0, 10, 10))
    return encoded(picture, "JPEG", exif=exif, quality=95)


QUARTER = Image.Exif()
QUARTER[0x0112] = 6  # stored lying; to be turned a quarter clockwise
CONVERSIONS = {  # data, size, colour of the pixel at the top left
    "16-bit grey, half": (solid("I;16", 0x8000), (8, 8), (127,) * 3),
    "16-bit grey, full": (solid("I;16", 0xFFFF), (8, 8), (255,) * 3),
    "transparent": (solid("RGBA", (255, 0, 0, 0)), (8, 8), (255, 255, 255)),
    "half transparent": (solid("RGBA", (0, 0, 0, 128)), (8, 8), (127, 127, 127)),
    "palette": (palette(), (1, 1), (9, 9, 9)),
    "transparent palette": (palette(transparency=0), (1, 1), (255, 255, 255)),
    "CMYK": (solid("CMYK", (0, 255, 255, 0), "JPEG"), (8, 8), (254, 0, 0)),
    "animation": (
        solid("RGB", "lime", "GIF", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]), (8, 8), (0, 255, 0)
    ),
    "EXIF": (turned(QUARTER), (10, 20), (0, 0, 0)),
    "broken EXIF": (turned(b"Exif\0\0not an exif block"), (20, 10), (0, 0, 0)),
    "one pixel wide": (solid("L", 5, size=(1, 20000)), (1, 20000), (5, 5, 5)),
    "black and white": (solid("1", 1), (8, 8), (255, 255, 255)),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONVERSIONS)
def test_what_is_not_plain_rgb_is_converted_as_documented(kind: str) -> None:
    data, size, colour = CONVERSIONS[kind]
    opened = BytesImage("x", data).open()
    assert (opened.mode, opened.size) == ("RGB", size)
    assert all(abs(got - want) <= 4 for got, want in zip(opened.getpixel((0, 0)), colour, strict=True))
    if kind == "EXIF":
        assert opened.getpixel((5, 2))[0] < 40 and opened.getpixel((5, 17))[0] > 215


@pytest.mark.parametrize("kind", FORMATS)
def test_a_cut_off_picture_is_an_error_and_the_cheap_check_finds_it(kind: str) -> None:
    whole = encoded(gradient(), kind)
    pixels = BytesImage("x", whole).open().tobytes()
    BytesImage("x", whole).check()
    refused = 0
    for kept in range(0, len(whole), max(1, len(whole) // 60)):
        picture = BytesImage("cut", whole[:kept])
        try:
            assert picture.open().tobytes() == pixels, "a picture with parts made up came through"
        except ImageError:
            refused += 1
            with pytest.raises(ImageError, match="'cut'"):
                picture.check()
        else:
            picture.check()
    assert refused >= 55
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"restart_marker_blocks": 2}, {"progressive": True}])
@pytest.mark.parametrize("noise", [0, 200])  # a grey picture is what libjpeg makes of missing data
def test_half_a_jpeg_with_an_end_marker_is_no_picture(noise: int, options: dict[str, Any], tmp_path: Path) -> None:
    random = Random(0)
    picture = Image.frombytes("RGB", (120, 90), bytes(128 + random.randint(0, noise) // 2 for _ in range(120 * 90 * 3)))
    whole = encoded(picture, "JPEG", quality=90, **options)
    assert BytesImage("x", whole).open().tobytes() == Image.open(io.BytesIO(whole)).tobytes()
    (tmp_path / "whole.jpg").write_bytes(whole + b"what cameras append")
    start = whole.index(b"\xff\xda") + 14
    (tmp_path / "half.jpg").write_bytes(whole[: start + (len(whole) - start) // 3] + b"\xff\xd9")
    for check in ("header", "decode"):
        wrong = image_issues(tmp_path, ["whole.jpg", "half.jpg"], check)  # type: ignore[arg-type]
        assert wrong.keys() == {"half.jpg"} and "is a JPEG picture that is damaged or cut off" in wrong["half.jpg"]
    with pytest.raises(ImageError, match=r"'half\.jpg' is a JPEG picture that is damaged or cut off"):
        FileImage(tmp_path, "half.jpg").open()


def test_limits_of_size_and_shape_are_exact(tmp_path: Path) -> None:
    for height in (200, 201):
        (tmp_path / f"{height}.png").write_bytes(solid("L", 5, size=(1, height)))
    names = ["200.png", "201.png"]
    (sentence,) = image_issues(tmp_path, names, "header").values()
    assert sentence.startswith("'201.png' is 1 x 201 pixels, more than 200 times as long as wide")
    assert image_issues(tmp_path, names[:1], "header", pixel_limit=200) == {}
    with pytest.raises(ImageError, match="200 pixels, the limit is 199"):
        FileImage(tmp_path, "200.png", pixel_limit=199).open()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", r"(0 bytes) is no whole PNG"),
        (b"just some text", "is no whole PNG"),
        (b"\x89PNG\r\n\x1a\nthen something else", "is no whole PNG"),
        (encoded(gradient(), "TIFF"), "is no whole PNG"),
        (encoded(gradient(), "PPM"), "is no whole PNG"),
        (b"SIMPLE  =                    T".ljust(80) + b"END".ljust(80), "is no whole PNG"),
        (png(50_000, 50_000), "too large. Image size (2500000000 pixels)"),
        (png(9_000, 9_000), "81,000,000 pixels, the limit is 64,000,000. Shrink it, or raise pixel_limit"),
    ],
)
def test_what_is_no_usable_picture_is_named(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "a.png").write_bytes(data)
    for use in (FileImage(tmp_path, "a.png").open, FileImage(tmp_path, "a.png").check):
        with pytest.raises(ImageError, match=r"'a\.png'") as caught:
            use()
        assert says in str(caught.value)


def test_bombs_cost_no_memory(tmp_path: Path) -> None:
    """A child that imports this module alone stays small whatever it is given; so does its list of imports."""
    inflated = zlib.compress(bytes(300_000_000), 9)
    bombs = {
        "size.png": png(50_000, 50_000),
        "text.png": png(9, 9, png_chunk(b"zTXt", b"a\0\0" + inflated)),
        "profile.png": png(9, 9, png_chunk(b"iCCP", b"a\0\0" + inflated)),
        "size.webp": b"RIFF\x5c\0\0\0WEBPVP8L\x50\0\0\0\x2f\xff\xff\xff\x0f" + bytes(75),
        "size.gif": b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\2\2\x44\1\0;",
        "size.bmp": b"BM" + struct.pack("<IHHI IiiHHIIiiII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, *[0] * 6),
    }
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    child = """
import sys
from pathlib import Path
from mirage.images import ImageError, FileImage
for name in sys.argv[2:]:
    for use in (FileImage(Path(sys.argv[1]), name).open, FileImage(Path(sys.argv[1]), name).check):
        try:
            use()
        except ImageError as error:
            if name.startswith("size") and "pixels" not in str(error):
                sys.exit(f"{name} was not refused for its size: {error}")
            continue
        sys.exit(f"{name} came through")
print(*{"torch", "transformers", "datasets", "lightning", "numpy"} & set(sys.modules))
status = Path("/proc/self/status")  # not getrusage: its peak is inherited from the process that forked this one
for line in status.read_text().splitlines() if status.exists() else ():
    assert not line.startswith("VmHWM") or int(line.split()[1]) < 300 * 1024, line
"""
    command = [sys.executable, "-c", child, str(tmp_path), *bombs]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(mirage.__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], "no heavy library"


OUTSIDE = [
    "../secret.png", "/etc/passwd", "sub/../../secret.png", "sub/../picture.png", "link.png", "folder_link/secret.png",
    "file:///etc/passwd", "http://169.254.169.254/latest", "data:image/png;base64,AAAA", "C:\\x.png", "C:/x.png",
    "sub\\..\\..\\secret.png", "~/x.png", "~root/x.png", "picture.png\0.txt", "pic\nture.png", "\ud800.png", "", "  ",
    "a/" * 2500, "a/" * 2500 + "b", "a" * 300, "b" * 10**6, "sub", ".", "picture.png/", "queue",
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE, ids=[ascii(name)[:30] for name in OUTSIDE])
def test_a_name_that_leaves_the_folder_is_refused_before_anything_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    secret = solid("RGB", "red") + b"TOP SECRET"
    (tmp_path / "secret.png").write_bytes(secret)
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "picture.png").write_bytes(secret)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "folder_link").symlink_to(tmp_path)
    (root / "~").mkdir()
    (root / "~" / "x.png").write_bytes(secret)
    os.mkfifo(root / "queue")  # opening it would hang

    def spy(*arguments: object, **_: object) -> None:
        raise AssertionError(f"opened {arguments[0]!r}")

    with monkeypatch.context() as patched:
        for opener in ("builtins.open", "io.open", "os.open"):
            patched.setattr(opener, spy)
        with pytest.raises(ImageError) as caught:
            resolve_image(root, name)
        assert image_issues(root, [name], "exists").keys() == {name}
    message = str(caught.value)
    assert "SECRET" not in message and len(message) < 600 and message.isprintable()
    with pytest.raises(ImageError):
        FileImage(root, name).open()


def test_links_and_odd_spellings_inside_the_folder_are_fine(tmp_path: Path) -> None:
    data = solid("RGB", "red", size=(2, 2))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "picture 1: \u00e9.png").write_bytes(data)
    (tmp_path / "link.png").symlink_to(tmp_path / "sub" / "picture 1: \u00e9.png")
    names = ["sub/picture 1: \u00e9.png", "./sub//picture 1: \u00e9.png", "link.png"]
    assert [FileImage(tmp_path, name).open().size for name in names] == [(2, 2)] * 3
    assert image_issues(tmp_path, names, "decode") == {}
    linked = tmp_path.parent / f"{tmp_path.name}-linked"
    linked.symlink_to(tmp_path)
    assert FileImage(linked, "link.png").open().size == (2, 2)


def test_missing_pictures_are_all_found_and_the_first_ten_get_their_nearest_names(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    for number in range(30):
        (tmp_path / "cats" / f"cat_{number:04}.png").write_bytes(solid("L", 0))
    wrong = image_issues(tmp_path, [f"cats/cat_{number:04}.jpg" for number in range(1000)], "exists")
    assert len(wrong) == 1000
    first = wrong["cats/cat_0000.jpg"]
    assert str(tmp_path / "cats") in first and "'cat_0000.png'" in first
    assert sum("Nearest names" in sentence for sentence in wrong.values()) == 10
    assert "there is no folder" in image_issues(tmp_path, ["dogs/a.png"], "exists")["dogs/a.png"]


def test_each_depth_of_checking_finds_what_it_promises(tmp_path: Path) -> None:
    whole = encoded(gradient(), "PNG")
    half = len(whole) // 2
    spoilt = whole[:half] + bytes([whole[half] ^ 0xFF]) + whole[half + 1 :]
    for name, data in {"good.png": whole, "cut.png": whole[:half], "spoilt.png": spoilt}.items():
        (tmp_path / name).write_bytes(data)
    found: list[str] = []
    for check, more in (("none", "/bad"), ("exists", "absent.png"), ("header", "cut.png"), ("decode", "spoilt.png")):
        found.append(more)
        names = ["good.png", "cut.png", "spoilt.png", "absent.png", "/bad"]
        assert image_issues(tmp_path, names, check).keys() == set(found)  # type: ignore[arg-type]


def test_nothing_else_in_mirage_opens_a_picture() -> None:
    opening = [
        module.name
        for module in Path(mirage.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "open" and ast.unparse(node.value).endswith("Image")
    ]
    assert opening == ["images.py"]
