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
import stat
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

# WEBP is imported by name: Pillow would otherwise load all of its sixty plugins to find it.
from PIL import Image, ImageOps, UnidentifiedImageError, WebPImagePlugin  # noqa: F401
from pydantic import AfterValidator

from mirage.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
PIXEL_LIMIT = 64_000_000  # 256 MB in Pillow's four bytes a pixel; a 48-megapixel phone photo passes
NAME_LIMIT = 1000  # characters
NEAREST_SHOWN_FOR = 10  # as many missing files as an error message shows
ImageCheck = Literal["decode", "header", "exists", "none"]
Depth = Literal["decode", "header"]

_PLAIN = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_./-]*[A-Za-z0-9_])?")
_BELOW = "Write a path below the image folder"
# What a name may not match -> what it then is, and the remedy. In this order: the first one is reported.
_REFUSED = tuple(
    (re.compile(pattern, re.IGNORECASE), remedy)
    for pattern, remedy in {
        r"[\x00-\x1f\ud800-\udfff]": "holds a control character or half a character. Correct the record.",
        r"^(?:[a-z][a-z0-9+.-]*://|(?:file|data|http|https|ftp):)": (
            "is a URL. Pictures are never fetched: download it into the image folder and write its path."
        ),
        r"^[a-z]:|\\": f"is a Windows path. {_BELOW}, with '/' between folders.",
        r"^/": f"is an absolute path. {_BELOW}.",
        r"/$": f"is the name of a folder. {_BELOW}.",
        r"^~": f"starts with '~', which is not expanded. {_BELOW}.",
        r"(?:^|/)\.\.(?:/|$)": f"leaves its folder by '..'. {_BELOW}.",
    }.items()
)


class ImageError(DataError):
    """A picture that cannot be used. `remedy` is the sentence without the word "image" in front."""

    def __init__(self, remedy: str) -> None:
        super().__init__(f"image {remedy}")
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[ImageError], tuple[str]]:
        """Pickled by its remedy, so that a loader worker can hand it on."""
        return type(self), (self.remedy,)


def name_issue(name: str) -> str | None:
    """Why a name may not be looked up at all, or None. Looks at the text only, never at the disk."""
    if len(name) < 200 and _PLAIN.fullmatch(name) and ".." not in name:
        return None  # nearly all of them
    if not name.strip():
        return f"is an empty name. {_BELOW}, or remove the record."
    if len(name) > NAME_LIMIT or any(len(part.encode(errors="replace")) > 255 for part in name.split("/")):
        return f"{_shown(name)} is too long for a file name ({len(name)} characters). Correct the record."
    return next((f"{_shown(name)} {remedy}" for pattern, remedy in _REFUSED if pattern.search(name)), None)


def _allowed(name: str) -> str:
    if issue := name_issue(name):
        raise ValueError(issue)
    return name


ImageName = Annotated[str, AfterValidator(_allowed)]
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
        """Like the function `check_image`, for this picture."""
        with self._bytes() as file:
            check_image(file, self.name, depth, self.pixel_limit)

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

    Args:
        root: The folder that the name must not leave.
        name: A path below it.
        suggest: Look for the nearest names if it is missing, which thousands of missing files cannot afford.

    Raises:
        ImageError: If the name points outside the root in any way, or no such file is there.
    """
    if refusal := name_issue(name):
        raise ImageError(refusal)
    base = os.path.realpath(root)
    path = os.path.realpath(os.path.join(base, name))
    if not _is_below(base, path):
        remedy = "Copy the file into the folder, or set the folder it points to."
        raise ImageError(f"{_shown(name)} is a link that leaves {root}. {remedy}")
    try:
        mode = os.stat(path).st_mode
    except OSError:
        raise ImageError(_missing(root, name) if suggest else f"{_shown(name)} is missing in {root}.") from None
    if not stat.S_ISREG(mode):
        raise ImageError(f"{_shown(name)} in {root} is not a file. Correct the record.")
    return Path(path)


def check_image(file: BinaryIO, name: str, depth: Depth = "header", pixel_limit: int = PIXEL_LIMIT) -> None:
    """Checks that the open file is a picture that can be used.

    `header` reads the first and last bytes: format, size in pixels, and whether the end is there. Only where the end
    looks odd is the picture decoded, so that decoding has the last word. `decode` always decodes, and compares PNG's
    check sums, which decoding alone does not.

    Raises:
        ImageError: If it cannot be used.
    """
    picture = _identified(file, name, pixel_limit)
    if depth == "decode":
        with _refusing(name, picture):
            picture.verify()
    if depth == "decode" or not _ends_whole(picture.format or "", file):
        file.seek(0)
        _decoded(file, name, pixel_limit)


def image_issues(root: Path, names: Iterable[str], check: ImageCheck, pixel_limit: int = PIXEL_LIMIT) -> dict[str, str]:
    """What is wrong with each picture that cannot be used: name -> sentence. Good pictures are not in it.

    Each folder is listed once instead of asking for each file. `exists` stops there, `header` and `decode` look into
    the files as `check_image` does, and `none` looks at the names only.
    """
    issues: dict[str, str] = {}
    folders: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(names):
        if refusal := name_issue(name):
            issues[name] = refusal
        elif check != "none":
            folders[os.path.dirname(name)].append(name)
    base = os.path.realpath(root)
    missing = 0
    for folder, inside in folders.items():
        where = os.path.realpath(os.path.join(base, folder))
        plain = _plain_files(where) if _is_below(base, where) else set()
        for name in inside:
            try:
                if os.path.basename(name) not in plain:
                    # A link, an odd spelling such as "a/./b.png", or missing: the careful way decides, and words it.
                    resolve_image(root, name, suggest=missing < NEAREST_SHOWN_FOR)
                if check in ("header", "decode"):
                    with open(os.path.join(where, os.path.basename(name)), "rb") as file:
                        check_image(file, name, "decode" if check == "decode" else "header", pixel_limit)
            except ImageError as error:
                issues[name] = error.remedy
                missing += 1
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
    try:
        with warnings.catch_warnings():
            # Pillow warns above its own limit and goes on; ours is an error, a few lines below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise ImageError(f"{_shown(name)} has more pixels than any setting allows (178,956,970). Shrink it.") from None
    except MemoryError:
        raise
    except Exception as error:
        if file.seek(0, os.SEEK_END) == 0:
            remedy = "is an empty file (0 bytes). Download it again or remove its record."
        else:
            why = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
            kinds = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
            remedy = f"is no whole {kinds} picture{why}. Replace the file or remove its record."
        raise ImageError(f"{_shown(name)} {remedy}") from error
    image_px = picture.width * picture.height
    if image_px > pixel_limit:
        what = f"{_shown(name)} has {image_px:,} pixels, the limit is {pixel_limit:,}"
        raise ImageError(f"{what}. Shrink it, or raise pixel_limit if you trust it.")
    return picture


def _decoded(file: BinaryIO, name: str, pixel_limit: int) -> Image.Image:
    picture = _identified(file, name, pixel_limit)
    with _refusing(name, picture):
        picture.load()
    try:
        return to_rgb(ImageOps.exif_transpose(picture))
    except MemoryError:
        raise
    except Exception:  # a broken EXIF block in a sound picture: viewers show it as it lies
        return to_rgb(picture)


@contextmanager
def _refusing(name: str, picture: Image.Image) -> Iterator[None]:
    """Turns whatever Pillow raises while it decodes a picture into an `ImageError`; want of memory stays what it is."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        what = f"{_shown(name)} is a {picture.format} picture that is damaged or cut off"
        raise ImageError(f"{what} ({error}). Replace the file or remove its record.") from error


def _ends_whole(kind: str, file: BinaryIO) -> bool:
    """True if the last bytes are those that a whole picture of this kind ends in."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    file.seek(max(0, size - 12))
    tail = file.read(12)
    match kind:
        case "PNG":
            return tail[4:8] == b"IEND"
        case "JPEG" | "MPO":
            return tail.endswith(b"\xff\xd9")
        case "GIF":
            return tail.endswith(b";")
        case "WEBP":
            return int.from_bytes(head[4:8], "little") + 8 <= size
    return False


def _plain_files(folder: str) -> set[str]:
    """Names of the regular files in a folder, links left out; empty where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    except OSError:
        return set()


def _is_below(base: str, path: str) -> bool:
    return path == base or path.startswith(base.rstrip("/") + "/")


def _missing(root: Path, name: str) -> str:
    folder = Path(root, name).parent
    if not folder.is_dir():
        return f"{_shown(name)} is missing: there is no folder {folder}. Unpack the pictures there."
    wanted = os.path.basename(name)
    listing = sorted((held.lower(), held) for held in os.listdir(folder))
    # To compare with 100,000 names takes seconds; a wrong ending or number leaves the right name close in order.
    middle = bisect.bisect(listing, (wanted.lower(),))
    close_by = dict(listing[max(0, middle - 500) : middle + 500])
    near = [close_by[key] for key in difflib.get_close_matches(wanted.lower(), close_by, n=3, cutoff=0.5)]
    hint = f"Nearest names: {', '.join(map(repr, near))}." if near else f"It holds {len(listing)} files, none alike."
    return f"{_shown(name)} is missing in {folder}. {hint}"


def _shown(name: str) -> str:
    """The name, quoted and escaped, cut to a readable length."""
    return repr(name if len(name) <= 120 else name[:100] + "...")
