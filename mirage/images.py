"""The only module that resolves an image name or decodes an image.

Names come from data files that others wrote, so a name is not permission to read: it must lie inside its root. Pictures
are recognised by content (PNG, JPEG, WEBP, GIF, BMP), never by ending. What comes out is always RGB:

    animation            its first frame
    EXIF orientation     applied; an EXIF block that cannot be read counts as "upright"
    transparency         laid over white, as a person sees it
    16-bit grey          divided by 257, so that full scale stays full scale
    CMYK, palette, grey  Pillow's conversion; colour profiles are ignored

A picture that is missing, broken, cut off or too large is an error that names it. There is no substitute picture.
"""

from __future__ import annotations

import bisect
import difflib
import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

# WEBP is imported by name: Pillow would otherwise load all of its sixty plugins to find it.
from PIL import Image, ImageOps, UnidentifiedImageError, WebPImagePlugin  # noqa: F401
from pydantic import AfterValidator

from mirage.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
PIXEL_LIMIT = 64_000_000  # 256 MB in Pillow's four bytes a pixel; a 48-megapixel phone photo passes
ASPECT_LIMIT = 200  # one side to the other: Qwen's processors take no more, others enlarge such pictures to gigabytes
JPEGS_DECODED = 5_000  # in sets of up to so many pictures, some seconds of decoding; half a JPEG may have an end marker
NEAREST_SHOWN_FOR = 10  # as many missing files as an error message shows
ImageCheck = Literal["decode", "header", "exists", "none"]
Depth = Literal["decode", "header"]

# What a name may not match -> what it then is, and the remedy. In this order: the first one is reported.
_REFUSED = {
    r"[\x00-\x1f\ud800-\udfff]": "holds a control character or half a character. Correct the record.",
    r"^(?:[a-z][a-z0-9+.-]*://|(?:file|data|http|https|ftp):)": (
        "is a URL. Pictures are never fetched: download it into the image folder and write its path."
    ),
    r"^\s*$|^[~/]|^[a-z]:|\\|/$|(?:^|/)\.\.(?:/|$)": (
        "leaves its folder, or is no path below it. Write one with '/' between folders, and without '..', '~', a drive "
        "or a '/' at its ends."
    ),
}
_ANY_REFUSED = re.compile("|".join(_REFUSED), re.IGNORECASE)
_JPEG_AHEAD = 8  # bytes that libjpeg reads ahead
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
_ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "GIF": b";"}  # of whole pictures


class ImageError(DataError):
    """A picture that cannot be used; the message is a sentence that begins with its name."""


def allowed_name(name: str) -> str:
    """The name, if it may be looked up at all. Looks at the text only, never at the disk.

    Raises:
        ImageError: If it cannot be the name of a file below a folder.
    """
    if _ANY_REFUSED.search(name):
        remedy = next(remedy for pattern, remedy in _REFUSED.items() if re.search(pattern, name, re.IGNORECASE))
        raise ImageError(f"{_shown(name)} {remedy}")
    return name


ImageName = Annotated[str, AfterValidator(allowed_name)]
"""A text that may be looked up below an image folder, for the shape of a record."""


class _Opened:
    """What both kinds of pictures do with their bytes."""

    name: str
    pixel_limit: int

    def open(self) -> Image.Image:
        """The decoded RGB picture.

        Raises:
            ImageError: If the name leaves the root, or the picture is missing, broken, cut off or too large.
        """
        with self._bytes() as file:
            return _decoded(file, self.name, self.pixel_limit)

    def check(self, depth: Depth = "header") -> None:
        """Checks that this is a picture that can be used.

        `header` reads the first and last bytes: format, size in pixels, and whether the end is there. Only where the end
        looks odd is the picture decoded, so that decoding has the last word. `decode` always decodes, and compares PNG's
        check sums, which decoding alone does not. Both refuse a picture more than 200 times as long as wide.

        Raises:
            ImageError: If it cannot be used.
        """
        with self._bytes() as file:
            _check(file, self.name, depth, self.pixel_limit)

    def _bytes(self) -> BinaryIO:
        raise NotImplementedError


@dataclass(frozen=True)
class FileImage(_Opened):
    """A picture in a file below `root`, opened when asked."""

    root: Path
    name: str
    pixel_limit: int = PIXEL_LIMIT

    def _bytes(self) -> BinaryIO:
        return resolve_image(self.root, self.name).open("rb")


@dataclass(frozen=True)
class BytesImage(_Opened):
    """A picture that lies inside another file, such as a parquet column."""

    name: str
    data: bytes = field(repr=False)
    pixel_limit: int = PIXEL_LIMIT

    def _bytes(self) -> BinaryIO:
        return io.BytesIO(self.data)


def resolve_image(root: Path, name: str, *, suggest: bool = True) -> Path:
    """The regular file `name` below `root`, links followed; nothing is opened.

    If it is missing the nearest names are looked for (`suggest`), which thousands of missing files cannot afford.

    Raises:
        ImageError: If the name points outside the root in any way, or no such file is there.
    """
    allowed_name(name)
    base = os.path.realpath(root)
    path = os.path.realpath(os.path.join(base, name))
    if os.path.commonpath((base, path)) != base:
        raise ImageError(f"{_shown(name)} is a link that leaves {root}. Copy the file there, or set its own folder.")
    if not os.path.exists(path):
        raise ImageError(_missing(root, name) if suggest else f"{_shown(name)} is missing in {root}.")
    if not os.path.isfile(path):
        raise ImageError(f"{_shown(name)} in {root} is no regular file. Name one.")
    return Path(path)


def image_issues(root: Path, names: Iterable[str], check: ImageCheck, pixel_limit: int = PIXEL_LIMIT) -> dict[str, str]:
    """What is wrong with each picture that cannot be used: name -> sentence. Good pictures are not in it.

    Each folder is listed once instead of asking for each file. `exists` stops there, `header` and `decode` look into
    the files as the pictures' `check` does, and `none` looks at the names only. Of up to 5,000 pictures, `header` decodes
    the JPEGs as well.
    """
    issues: dict[str, str] = {}
    base = os.path.realpath(root)
    names = dict.fromkeys(names)

    @cache
    def listed(folder: str) -> tuple[str, set[str]]:
        """The folder, links followed, and the names of its regular files, links left out; none outside of the root."""
        where = os.path.realpath(os.path.join(base, folder))
        try:
            entries = os.scandir(where) if os.path.commonpath((base, where)) == base else ()
            return where, {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
        except OSError:
            return where, set()

    for name in names:
        try:
            allowed_name(name)
            if check == "none":
                continue
            folder, file = os.path.split(name)
            where, plain = listed(folder)
            # A link, an odd spelling such as "a/./b.png", or missing: the careful way decides, and words it.
            careful = file not in plain
            path = resolve_image(root, name, suggest=len(issues) < NEAREST_SHOWN_FOR) if careful else Path(where, file)
            if check != "exists":
                with path.open("rb") as opened:
                    _check(opened, name, check, pixel_limit, decode_jpeg=len(names) <= JPEGS_DECODED)
        except ImageError as error:
            issues[name] = str(error)
        except OSError as error:
            issues[name] = f"{_shown(name)} in {root} cannot be read ({error.strerror}). Correct its permissions."
    return issues


def to_rgb(picture: Image.Image) -> Image.Image:
    """The picture in RGB, by the conversions that the module's description lists."""
    if picture.mode.startswith("I"):
        return picture.point(lambda value: value * (1 / 257)).convert("L").convert("RGB")
    if picture.has_transparency_data:
        layered = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return picture if type(picture) is Image.Image and picture.mode == "RGB" else picture.convert("RGB")


def _identified(file: BinaryIO, name: str, pixel_limit: int) -> Image.Image:
    """The picture with its header read and its size allowed, not decoded."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    with _refusing(name, f"({size} bytes) is no whole {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture"):
        try:
            with warnings.catch_warnings():
                # Pillow warns above its own limit and goes on; ours is an error.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                picture = Image.open(file, formats=FORMATS)
            if picture.width * picture.height > pixel_limit:
                pixels = picture.width * picture.height
                raise Image.DecompressionBombError(f"It has {pixels:,} pixels, the limit is {pixel_limit:,}.")
        except Image.DecompressionBombError as error:
            remedy = "Shrink it, or raise pixel_limit (at most to 178,956,970) if you trust it."
            raise ImageError(f"{_shown(name)} is too large. {error} {remedy}") from None
    return picture


def _check(file: BinaryIO, name: str, depth: Depth, pixel_limit: int, *, decode_jpeg: bool = False) -> None:
    picture = _identified(file, name, pixel_limit)
    if max(picture.size) > ASPECT_LIMIT * min(picture.size):
        shape = f"{picture.width} x {picture.height} pixels, more than {ASPECT_LIMIT} times as long as wide"
        raise ImageError(f"{_shown(name)} is {shape}, which processors do not take. Crop it or remove its record.")
    if depth == "decode":
        with _refusing(name, f"is a damaged {picture.format} picture"):
            picture.verify()
    if depth == "decode" or (decode_jpeg and picture.format == "JPEG") or not _ends_whole(picture.format, file):
        _decoded(file, name, pixel_limit)


def _decoded(file: BinaryIO, name: str, pixel_limit: int) -> Image.Image:
    picture = _identified(file, name, pixel_limit)
    with _refusing(name, f"is a {picture.format} picture that is damaged or cut off"):
        if picture.format == "JPEG":
            picture = _complete_jpeg(file, picture, name, pixel_limit)
        picture.load()
    try:
        return to_rgb(ImageOps.exif_transpose(picture))
    except Exception:  # a broken EXIF block in a sound picture: viewers show it as it lies
        return to_rgb(picture)


def _complete_jpeg(file: BinaryIO, picture: Image.Image, name: str, pixel_limit: int) -> Image.Image:
    """The opened picture in a form that cannot be loaded if data are missing before its end marker.

    There libjpeg would fill the rest with grey and say nothing. Without the marker it asks for more, and Pillow says so.
    A progressive picture needs the marker; the last of its scans must be one that refines the last bit.
    """
    start = file.tell()  # Pillow has read up to the data of the first scan
    file.seek(0)
    data = file.read()
    end = data.find(_JPEG_END, start)
    scan = data.rfind(_JPEG_SCAN, 0, end)
    if end < 0 or (scan >= start and "progressive" not in picture.info):  # Pillow finds the one, several scans are rare
        return picture
    if "progressive" not in picture.info:
        return _identified(io.BytesIO(data[:end] + bytes(_JPEG_AHEAD)), name, pixel_limit)
    if data[scan + 7 + 2 * data[scan + 4]] & 15:
        raise ValueError("scans are missing")
    return picture


@contextmanager
def _refusing(name: str, what: str) -> Iterator[None]:
    """Turns whatever Pillow raises into an `ImageError` that says what the picture is; no memory stays what it is."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise ImageError(f"{_shown(name)} {what}{why}. Replace the file or remove its record.") from error


def _ends_whole(kind: str | None, file: BinaryIO) -> bool:
    """True if the last bytes are those that a whole picture of this kind ends in."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(8)
    file.seek(max(0, size - 8))
    tail = file.read(8)
    if kind == "WEBP":
        return int.from_bytes(head[4:], "little") + 8 <= size
    return kind in _ENDS and tail.endswith(_ENDS[kind])


def _missing(root: Path, name: str) -> str:
    folder, wanted = os.path.split(os.path.join(root, name))
    if not os.path.isdir(folder):
        return f"{_shown(name)} is missing: there is no folder {_shown(folder)}. Unpack the pictures there."
    listing = sorted((held.lower(), held) for held in os.listdir(folder))
    # To compare with 100,000 names takes seconds; a wrong ending or number leaves the right name close in order.
    wanted = wanted.lower()
    middle = bisect.bisect(listing, (wanted,))
    close_by = dict(listing[max(0, middle - 500) : middle + 500])
    near = [close_by[key] for key in difflib.get_close_matches(wanted, close_by, n=3, cutoff=0.5)]
    hint = f"Nearest names: {', '.join(map(repr, near))}." if near else f"It holds {len(listing)} files, none alike."
    return f"{_shown(name)} is missing in {folder}. {hint}"


def _shown(name: str) -> str:
    """The name, quoted and escaped, cut to a readable length."""
    return repr(name if len(name) <= 120 else name[:100] + "...")
