"""How likely a model finds an answer to a question: mean log-probability per token, many answers at a time."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from mirage.data.collate import Collator, Conversation
from mirage.errors import DataError
from mirage.evaluation.generate.decoding import answering, fed, forward_names
from mirage.evaluation.generate.huggingface import HuggingFaceEngine, like_batches
from mirage.evaluation.generate.prompts import render_prompt
from mirage.losses import sft
from mirage.schema import EvalSample, Example, Picture

MAX_ANSWER_TOKENS = 256  # of an answer, and at most half of the context; what comes later is not read


class Said(NamedTuple):
    """An answer to score, or (without it) a question to answer."""

    question: str
    image: Picture | None
    answer: str = ""


class _AnswerCollator(Collator):
    """Labels on the words of the answer alone: what the chat template writes after it is left out."""

    def conversation(self, example: Example) -> Conversation:
        answer = self._beginning(example.answer).strip()
        try:
            text, ((start, _),) = super().conversation(example)
        except DataError:  # a template that rewrites this answer: put it where the model begins to answer
            prompt = render_prompt(self.processor, example.prompt, example.image is not None)
            text, start = prompt + answer, len(prompt)
        end = start + len(answer)
        return Conversation(text[:end], ((start, end),))


def token_logp_mean(network: Any, processor: Any, said: Sequence[Said], batch_size: int) -> list[float]:
    """For each answer the mean log-probability of its tokens, in nats, given its question and picture; at most 0.

    The text is what the chat template makes of question and answer, without what it writes after the answer. Padded on
    the right; no gradients. Only the first `MAX_ANSWER_TOKENS` tokens of an answer count. An answer without any has
    -inf.

    Raises:
        ValueError: If a question holds the image placeholder.
    """
    longest = min(MAX_ANSWER_TOKENS, processor.tokenizer.model_max_length // 2)
    collator = _AnswerCollator(processor, max_length=sys.maxsize, max_answer_tokens=longest)
    answers = [item.answer.replace(processor.image_token, " ").strip() for item in said]  # else read as a picture
    scores = [-math.inf] * len(said)
    spoken = [index for index, answer in enumerate(answers) if answer]
    sizes = [(said[k].image is not None, 1, len(said[k].question) + len(answers[k])) for k in spoken]
    with answering(network):
        for places in like_batches(sizes, batch_size):
            indices = [spoken[place] for place in places]
            asked = ((said[k], answers[k]) for k in indices)
            batch = collator([Example(source="", image=q.image, prompt=q.question, answer=a) for q, a in asked])
            kept = batch.logits_to_keep
            last_only = {"logits_to_keep": kept} if "logits_to_keep" in forward_names(network) else {}
            logits_BSV = network(**fed(network, batch.inputs), **last_only, use_cache=False).logits[:, -kept:]
            nats_B = -sft(logits_BSV, batch.labels[:, -kept:].to(network.device))
            for index, score in zip(indices, nats_B.tolist(), strict=True):
                scores[index] = score
    return scores


def sampled_answers(
    network: Any, processor: Any, said: Sequence[Said], max_new_tokens: int, batch_size: int, seed: int
) -> list[str]:
    """The model's answers to the questions, sampled at temperature 1; the caller's random state is left as it was."""
    engine = HuggingFaceEngine(network, processor, max_new_tokens=max_new_tokens, batch_size=batch_size)
    samples = [EvalSample(id="", source="", image=item.image, question=item.question, unsafe=False) for item in said]
    return [text for (text,) in engine.sampled(samples, temperature=1.0, seed=seed)]
