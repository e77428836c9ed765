"""Every data source, for the command line: naming one in a config needs no path."""

from mirage.data.base import Source
from mirage.data.sources.filtered import Filtered
from mirage.data.sources.jsonl import Jsonl
from mirage.data.sources.llava import LlavaInstruct
from mirage.data.sources.mini import Mini
from mirage.data.sources.published import PublishedSplit
from mirage.data.sources.safety_sets import FigStep, HoliSafeBench, MMSafetyBench, ORBench, XSTest
from mirage.data.sources.spavl import SPAVL
from mirage.data.sources.vlguard import VLGuard

SOURCES: tuple[type[Source], ...] = (
    FigStep, Filtered, HoliSafeBench, Jsonl, LlavaInstruct, Mini, MMSafetyBench, ORBench, PublishedSplit, SPAVL, VLGuard,
    XSTest,
)  # fmt: skip
