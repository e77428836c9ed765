"""Every attack, judge, engine and benchmark, for the command line: naming one in a config needs no path."""

from mirage.evaluation.attack import Attack, OneWord, Published, RandomWord, Rewrite, RewriteByModel, WithoutWord
from mirage.evaluation.benchmarks.base import Benchmark
from mirage.evaluation.benchmarks.scienceqa import ScienceQA
from mirage.evaluation.benchmarks.textvqa import TextVQA
from mirage.evaluation.benchmarks.vizwiz import VizWiz
from mirage.evaluation.benchmarks.vqav2 import VQAv2
from mirage.evaluation.generate.base import Engine
from mirage.evaluation.generate.openai import OpenAIEngine
from mirage.evaluation.generate.pretrained import PretrainedEngine
from mirage.evaluation.judge.base import Judge
from mirage.evaluation.judge.classifier import Classifier
from mirage.evaluation.judge.exact import Exact
from mirage.evaluation.judge.fluency import Fluency
from mirage.evaluation.judge.keyword import Keyword
from mirage.evaluation.judge.model import ModelJudge
from mirage.evaluation.judge.topic import TopicFilter

ATTACKS: tuple[type[Attack], ...] = (OneWord, Published, RandomWord, Rewrite, RewriteByModel, WithoutWord)
JUDGES: tuple[type[Judge], ...] = (Classifier, Exact, Fluency, Keyword, ModelJudge, TopicFilter)
ENGINES: tuple[type[Engine], ...] = (OpenAIEngine, PretrainedEngine)
BENCHMARKS: tuple[type[Benchmark], ...] = (ScienceQA, TextVQA, VQAv2, VizWiz)
