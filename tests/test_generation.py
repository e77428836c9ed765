"""Generation: batched, padded and prefix-shared answers are the answers of one question at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_letters
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from mirage.data.sources.mini import Mini
from mirage.data.sources.vlguard import VLGuard
from mirage.errors import ModelError
from mirage.evaluation.generate.decoding import answering
from mirage.evaluation.generate.huggingface import HuggingFaceEngine
from mirage.evaluation.generate.pretrained import PretrainedEngine
from mirage.mini.questions import rewrites
from mirage.models.load import load_model
from mirage.models.lora import LoraSettings, add_lora
from mirage.models.processor import load_processor
from mirage.schema import EvalSample, Picture

pytestmark = pytest.mark.slow

MINI = "package:mirage.mini/checkpoint"
NEW_TOKENS = 10
PLAIN = ["llava", "llava_next", "idefics3", "smolvlm", "internvl", "vipllava", "llava_onevision"]
# positions, attention or caches of their own
OTHERWISE = ["qwen2_5_vl", "paligemma", "qwen2_vl", "qwen3_vl", "glm4v", "aya_vision", "idefics2", "gemma3", "mllama"]


@dataclass(frozen=True)
class Painted:
    """A picture of its own for each number, in more than one shape."""

    number: int

    @property
    def name(self) -> str:
        return f"painted {self.number}"

    def open(self) -> Image.Image:
        width, height = [(28, 28), (50, 28), (28, 60)][self.number % 3]
        noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(self.number))
        return Image.fromarray(noise.to(torch.uint8).numpy())


def sample(number: int, picture: Picture | None, *questions: str) -> EvalSample:
    return EvalSample(
        id=f"p{number}", source="test", image=picture, question=questions[0], unsafe=False, rewrites=questions[1:]
    )


SAMPLES = [
    sample(0, Painted(0), "Name it.", "What is the name of it?", "What would you call this thing if asked politely?"),
    sample(1, Painted(1), "Describe the old bridge and its stones.", "What bridge?"),
    sample(2, None, "Is it late?", "What time is it?"),
    sample(3, Painted(2), "Say", "Sa", "S", "What should be said of the river, the boat, and of the three gulls?"),
    sample(4, Painted(3), "Only this?"),
    sample(5, None, "And without any rewrite?"),
]


Built = Callable[[str], tuple[Any, Any]]


@pytest.fixture
def built(checkpoints: Callable[[str], Path]) -> Built:
    """A model, fresh each time, and its processor. Weights are large enough that no two tokens are almost as likely."""

    def build(kind: str) -> tuple[Any, Any]:
        folder = str(checkpoints(kind))
        processor = load_processor(folder)
        # paligemma is trained with nowhere, but answers all the same
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
        spoken = [
            set(processor.tokenizer.decode(token)) <= set(ascii_letters) for token in range(len(processor.tokenizer))
        ]
        silent = [token for token, letters in enumerate(spoken) if not letters and token != 2]
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(6.0)
            weight = (
                model.get_output_embeddings().weight
            )  # without words, so that different answers are different texts
            weight[silent] = weight[len(spoken) :] = 0.0
        return model, processor

    return build


@pytest.fixture
def llava(built: Built) -> tuple[Any, Any]:
    return built("llava")


def one_at_a_time(
    model: Any, processor: Any, samples: Sequence[EvalSample], new_tokens: int = NEW_TOKENS, ends: Sequence[int] = (2,)
) -> list[list[str]]:
    """The oracle: transformers alone, one question after the other, nothing padded and nothing shared."""
    answers = []
    for item in samples:
        pictures = [{"type": "image", "image": item.image.open()}] if item.image is not None else []
        answers.append([])
        for question in item.questions:
            message = {"role": "user", "content": [*pictures, {"type": "text", "text": question}]}
            inputs = processor.apply_chat_template(
                [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
            if "gemma" not in type(model).__name__.lower():
                inputs.pop("token_type_ids", None)
            output = model.generate(
                **inputs, max_new_tokens=new_tokens, do_sample=False, eos_token_id=list(ends), pad_token_id=3
            )
            tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
            end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
            answers[-1].append(processor.tokenizer.decode(tokens[:end], skip_special_tokens=True).strip())
    return answers


def engine(model: Any, processor: Any, **changed: Any) -> HuggingFaceEngine:
    return HuggingFaceEngine(model, processor, **{"max_new_tokens": NEW_TOKENS, "batch_size": 5, **changed})


class Rows:
    """How many rows each forward of a module was called with."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.seen: list[int] = []
        module.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.seen.append(len(next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))))


@pytest.mark.parametrize("kind", [*PLAIN, *OTHERWISE])
def test_answers_are_those_of_one_question_at_a_time(kind: str, built: Built, caplog: pytest.LogCaptureFixture) -> None:
    model, processor = built(kind)
    samples = SAMPLES if kind != "paligemma" else [item for item in SAMPLES if item.image]  # it always wants a picture
    expected = one_at_a_time(model, processor, samples)
    assert len({text for answers in expected for text in answers}) > len(samples), (
        "the model does distinguish questions"
    )
    with caplog.at_level(logging.INFO):
        ways: list[dict[str, Any]] = [{"batch_size": 2}, {"batch_size": 64}, {"share_prefix": False}]
        for changed in ways if kind in PLAIN else ways[:2]:
            assert engine(model, processor, **changed).answers(samples) == expected, changed
    notes = [record.getMessage() for record in caplog.records if "prefix" in record.getMessage()]
    assert len(notes) == (kind in OTHERWISE), notes  # one line, and only where nothing is shared


def test_a_picture_is_computed_once_for_all_shots(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    pictured = [item for item in SAMPLES if item.image is not None and item.rewrites]
    shared = Rows(model.model.vision_tower)
    asker = engine(model, processor)
    asker.answers(pictured)
    tried_out = sum(shared.seen) - len(pictured)
    shared.seen.clear()
    asker.answers(pictured)
    assert sum(shared.seen) == len(pictured)
    assert 0 < tried_out <= 4  # once for each engine: two pictures in our way, two rows called simply
    shared.seen.clear()
    engine(model, processor, share_prefix=False).answers(pictured)
    assert sum(shared.seen) >= sum(len(item.questions) for item in pictured)


def test_nothing_follows_an_end_token_and_finished_rows_leave_the_batch(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    whole = [
        processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        for answers in one_at_a_time(model, processor, SAMPLES)
        for text in answers
    ]
    ends = [2, *{tokens[3] for tokens in whole if len(tokens) > 4}][:4]
    model.generation_config.eos_token_id = ends
    expected = one_at_a_time(model, processor, SAMPLES, ends=ends)
    lengths = {len(text) for answers in expected for text in answers}
    assert len(lengths) > 3, lengths
    decoder = Rows(model.lm_head)
    assert engine(model, processor, batch_size=64).answers(SAMPLES) == expected
    assert min(decoder.seen) < max(decoder.seen)
    assert engine(model, processor, batch_size=64, share_prefix=False).answers(SAMPLES) == expected


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_the_checkpoints_own_settings_change_nothing_and_are_left_as_they_were(kind: str, built: Built) -> None:
    model, processor = built(kind)
    expected = engine(model, processor).answers(SAMPLES)
    config = model.generation_config
    config.do_sample, config.temperature, config.top_k, config.repetition_penalty = True, 5.0, 3, 9.0
    config.suppress_tokens, config.min_new_tokens, config.no_repeat_ngram_size = [5, 6, 7], 9, 2
    model.config.get_text_config().use_cache = False
    model.train()
    model.gradient_checkpointing_enable()
    (model.model.vision_tower if kind == "llava" else model.model.visual).eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    assert engine(model, processor).answers(SAMPLES) == expected
    with pytest.raises(RuntimeError, match="on purpose"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(processor.tokenizer, "batch_decode", _fails)
        engine(model, processor).answers(SAMPLES)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None and not parameter.is_inference() for parameter in model.parameters())
    assert model.generation_config is config and config.repetition_penalty == 9.0


def _fails(*_: Any, **__: Any) -> None:
    raise RuntimeError("on purpose")


def test_lora_adapters_are_used(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    plain = engine(model, processor).answers(SAMPLES)
    wrapped = add_lora(model, LoraSettings(r=2, target_modules=["q_proj", "v_proj"]))
    assert engine(wrapped, processor).answers(SAMPLES) == plain  # an adapter begins as zero
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 3.0, generator=torch.Generator().manual_seed(0))
    adapted = engine(wrapped, processor).answers(SAMPLES)
    assert adapted != plain
    wrapped.eval()
    assert adapted == one_at_a_time(wrapped.merge_and_unload(), processor, SAMPLES)


def test_every_answer_is_passed_on_at_once_with_its_sample_and_shot(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    heard: dict[tuple[str, int], str] = {}
    answers = engine(model, processor).answers(SAMPLES, lambda *answer: heard.__setitem__(answer[:2], answer[2]))
    assert heard == {
        (item.id, shot): text for item, shots in zip(SAMPLES, answers, strict=True) for shot, text in enumerate(shots)
    }
    kept: list[tuple[str, int]] = []

    def stop_after_six(id: str, shot: int, text: str) -> None:
        kept.append((id, shot))
        if len(kept) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine(model, processor, batch_size=4).answers(SAMPLES, stop_after_six)
    assert len(kept) == 6


def test_a_decoding_step_reads_the_device_once(llava: tuple[Any, Any]) -> None:
    model, processor = llava

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Reads.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    def reads(new_tokens: int) -> int:
        asker = engine(model, processor, max_new_tokens=new_tokens, batch_size=64)
        Reads.count = 0
        with Reads():
            asker.answers(SAMPLES[:2])
        return Reads.count

    model.generation_config.eos_token_id = None
    assert reads(3) == reads(9)  # besides one `tolist` a step, which is how tokens reach the host


def test_a_picture_behind_the_question_is_not_shared(llava: tuple[Any, Any], caplog: pytest.LogCaptureFixture) -> None:
    model, processor = llava
    before = engine(model, processor).answers(SAMPLES)
    processor.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}<|im_start|>{% endif %}"
        "{% for c in m['content'] | reverse %}"
        "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    pictured = [item for item in SAMPLES if item.image is not None]
    expected = one_at_a_time(model, processor, pictured)
    with caplog.at_level(logging.INFO):
        assert engine(model, processor).answers(pictured) == expected != before
    assert "does not put the picture before the question" in caplog.text


def test_a_model_that_miscounts_places_is_asked_by_its_own_generate(
    llava: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    model, processor = llava
    kind = type(model)

    class Stubborn(kind):  # type: ignore[misc, valid-type]
        """Takes positions and does not use them: nothing in its signature says so."""

        def forward(self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None,
                    past_key_values: Any = None, **others: Any) -> Any:  # fmt: skip
            return super().forward(
                input_ids=input_ids, attention_mask=attention_mask, past_key_values=past_key_values, **others
            )

    model.__class__ = Stubborn
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            engine(model, processor).answers(SAMPLES)
    (line,) = caplog.records
    assert "answers otherwise" in line.getMessage()


def test_settings_name_what_decides_an_answer_and_nothing_else(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    settings, squared = engine(model, processor).settings(), engine(model, processor, square=True)
    assert settings == engine(model, processor, batch_size=1, share_prefix=False).settings()
    assert settings != engine(model, processor, max_new_tokens=11).settings()
    wide = [sample(0, Painted(1), "What is it?", "What is seen here?")]
    assert squared.settings() != settings and squared.answers(wide) != engine(model, processor).answers(wide)
    model.generation_config.eos_token_id = [2, 9]
    assert settings != engine(model, processor).settings()


def test_bad_input_is_refused_in_one_sentence(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    for wrong, value in (("max_new_tokens", 0), ("batch_size", -1)):
        with pytest.raises(ValueError, match=f"{wrong} is {value}: it must be at least 1"):
            engine(model, processor, **{wrong: value})
    with pytest.raises(ValueError, match="holds the image placeholder '<image>'"):
        engine(model, processor).answers([sample(0, Painted(0), "What does <image> mean?")])
    with pytest.raises(ValueError, match=r"temperature is -1"):
        engine(model, processor).complete(["What?"], temperature=-1, seed=0)
    assert engine(model, processor).answers([]) == []


@pytest.mark.real
def test_the_real_kit_answers_the_same(real_kit: Path) -> None:
    folder = str(real_kit / "smol-llava")
    model, processor = load_model(folder).eval(), load_processor(folder)
    plain = VLGuard(real_kit / "vlguard").eval_samples("benign")[:2]
    samples = [replace(item, rewrites=(f"What about this: {item.question}",)) for item in plain]
    answers = engine(model, processor, max_new_tokens=5, batch_size=12).answers(samples)
    assert answers == one_at_a_time(model, processor, samples, 5)


def test_weights_are_cast_once_while_answers_are_written() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    model[0].requires_grad_(False)
    x = torch.randn(2, 8)

    def casts() -> int:
        with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            outputs.append(model(x))
        return sum(event.name == "aten::_to_copy" for event in profile.events())

    outputs: list[torch.Tensor] = []
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        assert casts() == casts() == 5  # each weight, each bias, and the input
        with answering(model):
            assert [casts(), casts()] == [5, 1]
        assert casts() == 5, "nothing is kept afterwards: the weights will change"
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, False, True, True]


def test_prompts_are_completed_greedily_or_by_seed(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    asker, prompts = engine(model, processor, batch_size=2), ["Say it.", "What is said of the bridge?", "Name"]
    plain = [sample(number, None, prompt) for number, prompt in enumerate(prompts)]
    assert [[text] for text in asker.complete(prompts, temperature=0, seed=1)] == one_at_a_time(model, processor, plain)
    state = torch.get_rng_state()
    first = asker.complete(prompts, temperature=1.5, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    model.generation_config.top_k = 1  # the checkpoint's own settings change nothing
    assert first == asker.complete(prompts, temperature=1.5, seed=1) != asker.complete(prompts, temperature=1.5, seed=2)


def test_a_folder_is_loaded_at_the_first_question_and_answers_as_its_model() -> None:
    asker = PretrainedEngine(MINI, max_new_tokens=24, batch_size=8, device="cpu", dtype="float32")
    settings = asker.settings()
    assert "loaded" not in vars(asker) and settings["pretrained"] == MINI
    assert settings != PretrainedEngine(MINI, pad_to_square=True).settings()
    plain = Mini().eval_samples("unsafe")[:6]
    samples = [replace(item, rewrites=rewrites(item.question, "what", 3)) for item in plain]
    model, processor = load_model(MINI).eval(), load_processor(MINI)
    ends = asker.loaded.settings()["end_tokens"]
    assert asker.answers(samples) == one_at_a_time(model, processor, samples, 24, ends)
    assert asker.image_placeholder == processor.image_token
    with pytest.raises(ModelError, match=r"There is no model folder nowhere"):
        PretrainedEngine("nowhere").answers(samples)
    with pytest.raises(ValueError, match=r"engine\.batch_size is 0"):
        PretrainedEngine(MINI, batch_size=0)


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ '[' + m['content'] + ']' }}{% endfor %}"])
def test_a_language_model_is_asked_without_pictures(template: str | None, tmp_path: Path) -> None:
    tokenizer = language_model(tmp_path, template)
    asker, prompts = (
        PretrainedEngine(str(tmp_path), max_new_tokens=8, batch_size=2),
        ["what bridge ?", "the baker", "is"],
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = []
    for prompt in prompts:
        inputs = tokenizer(f"[{prompt}]" if template else prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=1)
        expected.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    assert asker.complete(prompts, temperature=0, seed=0) == expected and len(set(expected)) > 1
    assert asker.complete(prompts, temperature=2, seed=3) != asker.complete(prompts, temperature=2, seed=4)
    assert asker.answers([sample(0, None, *prompts)]) == [expected] and asker.image_placeholder is None
    with pytest.raises(ValueError, match="reads text alone"):
        asker.answers([sample(0, Painted(0), *prompts)])
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        PretrainedEngine(str(tmp_path)).complete(prompts, temperature=0, seed=0)


def language_model(folder: Path, template: str | None) -> Any:
    """A tiny language model of ten words in `folder`; its tokenizer."""
    words = ["<pad>", "<s>", "what", "bridge", "is", "the", "[", "]", "?", "baker"]
    inner = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<s>", chat_template=template)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes, eos_token_id=1, initializer_range=1.0))
    model.lm_head.weight.data[:2] = 0.0  # so that answers have words
    model.save_pretrained(folder)
    return tokenizer
