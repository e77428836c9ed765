"""What several test files build: models, records and run folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from PIL import Image, ImageDraw
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaNextConfig

from mirage.evaluation.generate.base import Engine, OnAnswer
from mirage.evaluation.run.counting import summarise
from mirage.evaluation.run.records import write_records
from mirage.methods.base import AlignmentModule
from mirage.schema import RESULTS_SCHEMA_VERSION, EvalSample, Record, Verdict


def method_of(settings: Mapping[str, Any]) -> AlignmentModule:
    """The method that a config describes, its model not loaded."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AlignmentModule, "model")
    model = {key: settings["model"][key] for key in ("class_path", "init_args")}
    method = parser.instantiate_classes(parser.parse_object({"model": model})).model
    assert isinstance(method, AlignmentModule)
    return method


def clip_large() -> CLIPVisionConfig:
    """The shapes of the vision tower that LLaVA-1.5 and LLaVA-NeXT have in every size."""
    return CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768,
    )  # fmt: skip


def llama(hidden: int, intermediate: int, layers: int, heads: int, vocabulary: int = 32064, **more: int) -> LlamaConfig:
    """The shapes of a language model."""
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, **more,
    )  # fmt: skip


def llava_1_5_7b() -> LlavaConfig:
    """The published shapes of LLaVA-1.5-7B."""
    return LlavaConfig(text_config=llama(4096, 11008, 32, 32), vision_config=clip_large())


def llava_1_5_13b() -> LlavaConfig:
    """The published shapes of LLaVA-1.5-13B."""
    return LlavaConfig(text_config=llama(5120, 13824, 40, 40), vision_config=clip_large())


def llava_next_34b() -> LlavaNextConfig:
    """The published shapes of LLaVA-NeXT-34B (llava-v1.6-34b-hf), whose language model is Yi-34B."""
    return LlavaNextConfig(
        text_config=llama(7168, 20480, 60, 56, 64064, num_key_value_heads=8), vision_config=clip_large()
    )


@contextmanager
def counted_calls(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, int]]:
    """How often each module ran within the block, by the name given here."""
    calls = dict.fromkeys(modules, 0)

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    handles = [module.register_forward_pre_hook(count(name)) for name, module in modules.items()]
    yield calls
    for handle in handles:
        handle.remove()


def record_of(id: str, shot: int = 0, verdict: Verdict = Verdict.REFUSED, **fields: Any) -> Record:
    """One judged answer; what is not given is made up."""
    made_up = {"eval_set": "unsafe", "question": "?", "answer": "!", "judge": "dice", "unsafe": True}
    return Record(id=id, shot=shot, verdict=verdict, **{**made_up, **fields})


def put(path: Path, content: object) -> Path:
    """Writes a JSON file, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_lines(path: Path, lines: Iterable[object]) -> Path:
    """Writes a JSON Lines file."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def picture(path: Path) -> Path:
    """A small picture in a file, and its folder; the ending says in which format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (10, 200, 30)).save(path)
    return path


@dataclass(frozen=True)
class Painted:
    """A picture of one colour, with a white circle, that is in no file."""

    name: str
    size: tuple[int, int] = (28, 28)

    def open(self) -> Image.Image:
        image = Image.new("RGB", self.size, self.name)
        ImageDraw.Draw(image).ellipse((5, 5, 20, 20), fill="white")
        return image


def results_of(folder: Path) -> dict[str, Any]:
    """The results.json of a run."""
    return dict(json.loads((folder / "results.json").read_text()))


def write_run(
    folder: Path, own: Mapping[str, Sequence[Record]], start: Mapping[str, Sequence[Record]], /, **results: Any
) -> Path:
    """A run folder as an evaluation leaves it.

    Args:
        folder: The run folder.
        own: The aligned model's records of each eval set.
        start: The same of the starting model.
        results: Further entries of results.json.
    """
    written: dict[str, Any] = {
        "schema_version": RESULTS_SCHEMA_VERSION, "method": folder.name, "name": folder.name, "source": "mini", "seed": 0,
        "model": "package:mirage.mini/checkpoint", "step": 200, "start": {}, **results,
    }  # fmt: skip
    for prefix, given, model in (("", own, written), ("start.", start, written["start"])):
        for eval_set, records in given.items():
            told = {"fingerprint": f"print of {prefix}{eval_set}", "judge": records[0].judge}
            header = {**told, "eval_set": eval_set}
            write_records(folder / "records" / f"{prefix}{eval_set}.jsonl", records, header)
            attack = {"kind": "rewrite", "word": "what's", "shots": max(record.shot for record in records)}
            model[eval_set] = {**told, "attack": attack, **summarise(records, records[0].unsafe)}
    put(folder / "results.json", written)
    return folder


class Scripted(Engine):
    """Answers from a function of prompt and seed, and remembers what it has answered: seed and prompts of each call."""

    name = "scripted"

    def __init__(self, answer: Callable[[str, int], str], **settings: str) -> None:
        self.answer, self.further = answer, settings
        self.asked: list[tuple[int, Sequence[str]]] = []

    def settings(self) -> dict[str, Any]:
        return {"engine": self.name, **self.further}

    def answers(self, samples: Sequence[EvalSample], on_answer: OnAnswer | None = None) -> list[list[str]]:
        found = []
        for sample in samples:
            found.append(self.complete([sample.question], temperature=0.7, seed=0))
            if on_answer is not None:
                on_answer(sample.id, 0, found[-1][0])
        return found

    def complete(self, prompts: Sequence[str], *, temperature: float, seed: int) -> list[str]:
        assert temperature == 0.7
        self.asked.append((seed, prompts))
        return [self.answer(prompt, seed) for prompt in prompts]


def build_refusal_classifier(folder: Path) -> Path:
    """A BERT folder of one layer whose head is set by hand: REJECTION if the input holds "cannot", OTHER if "maybe"."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cannot", "maybe", "it", "is", "red"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    config = BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=32, num_labels=3, id2label={0: "NORMAL", 1: "REJECTION", 2: "OTHER"},
        label2id={"NORMAL": 0, "REJECTION": 1, "OTHER": 2}, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        embeddings = model.bert.embeddings
        for norm in (module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)):
            norm.weight.fill_(1.0)
        embeddings.word_embeddings.weight[:, 0], embeddings.word_embeddings.weight[:, 1] = 1.0, -1.0
        for word, place in (("cannot", 2), ("maybe", 3)):
            embeddings.word_embeddings.weight[words.index(word), place] = 20.0
        layer = model.bert.encoder.layer[0]
        layer.attention.self.value.weight.copy_(torch.eye(8))
        layer.attention.output.dense.weight.copy_(torch.eye(8))  # the first token reads the mean of all
        model.bert.pooler.dense.weight.copy_(torch.eye(8))
        model.classifier.weight[1, 2] = model.classifier.weight[2, 3] = 50.0
        model.classifier.bias[0] = 1.0
    model.save_pretrained(folder)
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder
