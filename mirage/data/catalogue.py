"""Every data source, for the command line: naming one in a config needs no path."""

from mirage.data.filtered import Filtered
from mirage.data.jsonl import Jsonl
from mirage.data.llava import LlavaInstruct
from mirage.data.mini import Mini
from mirage.data.published import PublishedSplit
from mirage.data.source import Source
from mirage.data.spavl import SPAVL
from mirage.data.vlguard import VLGuard

SOURCES: tuple[type[Source], ...] = (Filtered, Jsonl, LlavaInstruct, Mini, PublishedSplit, SPAVL, VLGuard)
