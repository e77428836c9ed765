"""Every attack and judge, for the command line: naming one in a config needs no path."""

from mirage.evaluation.attack import Attack, OneWord
from mirage.evaluation.exact import Exact
from mirage.evaluation.fluency import Fluency
from mirage.evaluation.judge import Judge
from mirage.evaluation.keyword import Keyword
from mirage.evaluation.model_judge import ModelJudge
from mirage.evaluation.rewrite import Published, RandomWord, Rewrite, RewriteByModel, WithoutWord
from mirage.evaluation.topic_filter import TopicFilter

ATTACKS: tuple[type[Attack], ...] = (OneWord, Published, RandomWord, Rewrite, RewriteByModel, WithoutWord)
JUDGES: tuple[type[Judge], ...] = (Exact, Fluency, Keyword, ModelJudge, TopicFilter)
