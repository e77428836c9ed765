"""How likely a model finds an answer to a question: mean log-probability per token, many answers at a time."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mirage.data.collate import Collator, Conversation
from mirage.errors import DataError
from mirage.evaluation.generate.decoding import answering, fed, forward_names
from mirage.evaluation.generate.huggingface import like_batches
from mirage.evaluation.generate.prompts import render_prompt
from mirage.losses import sft
from mirage.schema import Example

MAX_ANSWER_TOKENS = 256  # of an answer, and at most half of the context; what comes later is not read


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


def token_logp_mean(network: Any, processor: Any, said: Sequence[Example], batch_size: int) -> list[float]:
    """For each answer the mean log-probability of its tokens, in nats, given its prompt and picture; at most 0.

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
    sizes = [(said[k].image is not None, 1, len(said[k].prompt) + len(answers[k])) for k in spoken]
    with answering(network):
        for places in like_batches(sizes, batch_size):
            indices = [spoken[place] for place in places]
            batch = collator([replace(said[k], answer=answers[k]) for k in indices])
            kept = batch.logits_to_keep
            last_only = {"logits_to_keep": kept} if "logits_to_keep" in forward_names(network) else {}
            logits_BSV = network(**fed(network, batch.inputs), **last_only, use_cache=False).logits[:, -kept:]
            nats_B = -sft(logits_BSV, batch.labels[:, -kept:].to(network.device))
            for index, score in zip(indices, nats_B.tolist(), strict=True):
                scores[index] = score
    return scores
