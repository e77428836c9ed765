"""The one door for pictures: nothing else in mirage resolves an image name or decodes an image.

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
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

# WEBP is imported by name: Pillow would otherwise load all of its sixty plugins to find it.
from PIL import Image, ImageOps, UnidentifiedImageError, WebPImagePlugin  # noqa: F401

from mirage.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
PIXEL_LIMIT = 64_000_000  # 256 MB in Pillow's four bytes a pixel; a 48-megapixel phone photo passes
NAME_LIMIT = 1000  # characters
NEAREST_SHOWN_FOR = 10  # as many missing files as an error message shows
ImageCheck = Literal["decode", "header", "exists", "none"]

_PLAIN = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_./-]*[A-Za-z0-9_])?")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|(?:file|data|http|https|ftp):", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:")


class BadImage(DataError):
    """A picture that cannot be used. `remedy` is the sentence without the word "image" in front."""

    def __init__(self, remedy: str) -> None:
        super().__init__(f"image {remedy}")
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[BadImage], tuple[str]]:
        """Pickled by its remedy, so that a loader worker can hand it on."""
        return type(self), (self.remedy,)


@dataclass(frozen=True, slots=True)
class FileImage:
    """A picture in a file below `root`, opened when asked."""

    root: Path
    name: str
    pixel_limit: int = PIXEL_LIMIT

    def open(self) -> Image.Image:
        """The decoded RGB picture.

        Raises:
            BadImage: If the name leaves the root, or the file is missing, broken, cut off or too large.
        """
        with resolve_image(self.root, self.name).open("rb") as file:
            return _decoded(file, self.name, self.pixel_limit)

    def check(self, depth: Literal["decode", "header"] = "header") -> None:
        """Like the function `check_image`, for this picture."""
        with resolve_image(self.root, self.name).open("rb") as file:
            check_image(file, self.name, depth, self.pixel_limit)


@dataclass(frozen=True, slots=True)
class BytesImage:
    """A picture that lies inside another file, such as a parquet column."""

    name: str
    data: bytes = field(repr=False)
    pixel_limit: int = PIXEL_LIMIT

    def open(self) -> Image.Image:
        """The decoded RGB picture.

        Raises:
            BadImage: If the bytes are no whole picture, or it is too large.
        """
        return _decoded(io.BytesIO(self.data), self.name, self.pixel_limit)

    def check(self, depth: Literal["decode", "header"] = "header") -> None:
        """Like the function `check_image`, for this picture."""
        check_image(io.BytesIO(self.data), self.name, depth, self.pixel_limit)


def name_fault(name: object) -> str | None:
    """Why a name may not be looked up at all, or None. Looks at the text only, never at the disk."""
    if not isinstance(name, str):
        return f"is {type(name).__name__}, not a file name. Write a path below the image folder."
    if len(name) < 200 and _PLAIN.fullmatch(name) and ".." not in name:
        return None  # nearly all of them
    shown = _shown(name)
    if not name.strip():
        return "is an empty name. Write a path below the image folder, or remove the record."
    if len(name) > NAME_LIMIT or any(len(part.encode(errors="replace")) > 255 for part in name.split("/")):
        return f"{shown} is too long for a file name ({len(name)} characters). Correct the record."
    if any(ord(character) < 32 for character in name) or not _encodable(name):
        return f"{shown} holds a control character or half a character. Correct the record."
    if _URL.match(name):
        return f"{shown} is a URL. Pictures are never fetched: download it into the image folder and write its path."
    if _DRIVE.match(name) or "\\" in name:
        return f"{shown} is a Windows path. Write a path below the image folder, with '/' between folders."
    if name.startswith("/"):
        return f"{shown} is an absolute path. Write a path below the image folder."
    if name.endswith("/"):
        return f"{shown} is the name of a folder. Write the path of a picture below the image folder."
    if name.startswith("~"):
        return f"{shown} starts with '~', which is not expanded. Write a path below the image folder."
    if ".." in name.split("/"):
        return f"{shown} leaves its folder by '..'. Write a path below the image folder."
    return None


def resolve_image(root: Path, name: str) -> Path:
    """The regular file `name` below `root`, links followed; nothing is opened.

    Raises:
        BadImage: If the name points outside the root in any way, or no such file is there.
    """
    if refusal := name_fault(name):
        raise BadImage(refusal)
    base = os.path.realpath(root)
    path = os.path.realpath(os.path.join(base, name))
    if not _below(base, path):
        raise BadImage(_link_out(name, root))
    try:
        mode = os.stat(path).st_mode
    except OSError:
        raise BadImage(_missing(root, name)) from None
    if not stat.S_ISREG(mode):
        raise BadImage(f"{_shown(name)} in {root} is not a file. Correct the record.")
    return Path(path)


def check_image(
    file: BinaryIO, name: str, depth: Literal["decode", "header"] = "header", pixel_limit: int = PIXEL_LIMIT
) -> None:
    """Nothing, if the open file is a picture that can be used.

    `header` reads the first and last bytes: format, size in pixels, and whether the end is there. Only where the end
    looks odd is the picture decoded, so that decoding has the last word. `decode` always decodes, and compares PNG's
    check sums, which decoding alone does not.

    Raises:
        BadImage: If it cannot be used.
    """
    picture = _identified(file, name, pixel_limit)
    if depth == "decode":
        try:
            picture.verify()
        except Exception as error:
            raise BadImage(_damaged(name, picture, error)) from error
    if depth == "decode" or not _ends_whole(picture.format or "", file):
        file.seek(0)
        _decoded(file, name, pixel_limit)


def faulty_images(
    root: Path, names: Iterable[str], check: ImageCheck, pixel_limit: int = PIXEL_LIMIT
) -> dict[str, str]:
    """What is wrong with each picture that cannot be used: name -> sentence. Good pictures are not in it.

    Each folder is listed once instead of asking for each file. `exists` stops there, `header` and `decode` look into
    the files as `check_image` does, and `none` looks at the names only.
    """
    faults: dict[str, str] = {}
    folders: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(names):
        if refusal := name_fault(name):
            faults[name] = refusal
        elif check != "none":
            folders[os.path.dirname(name)].append(name)
    base = os.path.realpath(root)
    missing = 0
    for folder, inside in folders.items():
        where = os.path.realpath(os.path.join(base, folder))
        plain = _plain_files(where) if _below(base, where) else set()
        for name in inside:
            try:
                if os.path.basename(name) not in plain:
                    # A link, an odd spelling such as "a/./b.png", or missing: the careful way decides, and words it.
                    resolve_image(root, name) if missing < NEAREST_SHOWN_FOR else _resolve_briefly(root, name)
                if check in ("header", "decode"):
                    with open(os.path.join(where, os.path.basename(name)), "rb") as file:
                        check_image(file, name, "decode" if check == "decode" else "header", pixel_limit)
            except BadImage as error:
                faults[name] = error.remedy
                missing += 1
            except OSError as error:
                faults[name] = f"{_shown(name)} in {root} cannot be read ({error.strerror}). Correct its permissions."
    return faults


def _identified(file: BinaryIO, name: str, pixel_limit: int) -> Image.Image:
    """The picture with its header read and its size allowed, not decoded."""
    try:
        with warnings.catch_warnings():
            # Pillow warns above its own limit and goes on; ours is an error, two lines below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadImage(f"{_shown(name)} has more pixels than any setting allows (178,956,970). Shrink it.") from None
    except MemoryError:
        raise
    except Exception as error:
        raise BadImage(_not_a_picture(file, name, error)) from error
    image_px = picture.width * picture.height
    if image_px > pixel_limit:
        raise BadImage(_too_large(name, image_px, pixel_limit))
    return picture


def _decoded(file: BinaryIO, name: str, pixel_limit: int) -> Image.Image:
    picture = _identified(file, name, pixel_limit)
    try:
        picture.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        raise BadImage(_damaged(name, picture, error)) from error
    return to_rgb(_upright(picture))


def to_rgb(picture: Image.Image) -> Image.Image:
    """The picture in RGB, by the conversions that the module's description lists."""
    if picture.mode.startswith("I"):
        return picture.point(lambda value: value * (1 / 257)).convert("L").convert("RGB")
    if picture.has_transparency_data:
        layered = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return picture if type(picture) is Image.Image and picture.mode == "RGB" else picture.convert("RGB")


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except MemoryError:
        raise
    except (
        Exception
    ):  # a broken EXIF block in a sound picture: nobody knows its orientation, viewers show it as it lies
        return picture


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


def _resolve_briefly(root: Path, name: str) -> None:
    """As `resolve_image`, without a search for the nearest names, which thousands of missing files cannot afford."""
    path = os.path.realpath(os.path.join(root, name))
    if not _below(os.path.realpath(root), path):
        raise BadImage(_link_out(name, root))
    if not os.path.isfile(path):
        raise BadImage(f"{_shown(name)} is missing in {root}.")


def _below(base: str, path: str) -> bool:
    return path == base or path.startswith(base.rstrip("/") + "/")


def _link_out(name: str, root: Path) -> str:
    return (
        f"{_shown(name)} is a link that leaves {root}. Copy the file into the folder, or set the folder it points to."
    )


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


def _too_large(name: str, image_px: int, pixel_limit: int) -> str:
    what = f"{_shown(name)} has {image_px:,} pixels, the limit is {pixel_limit:,}"
    return f"{what}. Shrink it, or raise pixel_limit if you trust it."


def _damaged(name: str, picture: Image.Image, error: Exception) -> str:
    what = f"{_shown(name)} is a {picture.format} picture that is damaged or cut off"
    return f"{what} ({error}). Replace the file or remove its record."


def _not_a_picture(file: BinaryIO, name: str, error: Exception) -> str:
    if file.seek(0, os.SEEK_END) == 0:
        return f"{_shown(name)} is an empty file (0 bytes). Download it again or remove its record."
    kinds = ", ".join(FORMATS[:-1])
    why = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
    return f"{_shown(name)} is no whole {kinds} or {FORMATS[-1]} picture{why}. Replace the file or remove its record."


def _shown(name: str) -> str:
    """The name, quoted and escaped, cut to a readable length."""
    return repr(name if len(name) <= 120 else name[:100] + "...")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
