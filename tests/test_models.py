"""Models: the components of every architecture, forwards that stop, adapters, and folders that must be refused."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
import struct
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from builders import counted_calls, llava_1_5_7b
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, AutoTokenizer

import mirage
from mirage.errors import ModelError
from mirage.models.activations import activations
from mirage.models.components import (
    choose_trainable,
    component_parameters,
    decoder_layers,
    language_model,
    layer_of,
    vision_tower,
)
from mirage.models.load import load_for_inference, load_model
from mirage.models.lora import LoraSettings, add_lora
from mirage.models.memory import count_parameters, estimate, meta_model
from mirage.models.pretrained import check_pretrained, read_config, resolve_pretrained
from mirage.models.processor import (
    adds_special_tokens,
    end_of_answer,
    load_processor,
    needs_torchvision,
    pad_to_square,
    user_message,
)

pytestmark = pytest.mark.slow

KINDS = tiny_models.KINDS


@pytest.fixture
def llava(checkpoints: Callable[[str], Path]) -> Any:
    """The tiny LLaVA, fresh."""
    return load_model(str(checkpoints("llava")))


@pytest.fixture
def copied(checkpoints: Callable[[str], Path], tmp_path: Path) -> Path:
    """A LLaVA folder that a test may damage."""
    return Path(shutil.copytree(checkpoints("llava"), tmp_path / "model"))


def batch(processor: Any, answers: tuple[str, str] = ("It is red.", "Blue, I think.")) -> dict[str, Any]:
    """Two conversations with one picture each, of different length, padded on the right."""
    asked = user_message("What colour?", has_image=True)
    said = [[asked, {"role": "assistant", "content": [{"type": "text", "text": answer}]}] for answer in answers]
    texts, images = [processor.apply_chat_template(one) for one in said], [Image.new("RGB", (40, 20), "red")]
    pictures = [images, [Image.new("RGB", (20, 30), "blue")]]
    return dict(processor(images=pictures, text=texts, padding=True, padding_side="right", return_tensors="pt"))


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Every decoder layer, the vision tower and the output head."""
    layers = {str(index): layer for index, layer in enumerate(decoder_layers(model))}
    return {**layers, "vision": vision_tower(model), "head": model.get_output_embeddings()}


def hooks_of(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def trained_names(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


# Every architecture


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_loads_and_each_parameter_lies_in_one_component(
    kind: str, checkpoints: Callable[[str], Path]
) -> None:
    model = load_model(str(checkpoints(kind)))
    assert len(decoder_layers(model)) == tiny_models.LAYERS
    components = component_parameters(model)
    assert sorted(name for names in components.values() for name in names) == sorted(dict(model.named_parameters()))
    assert all(components.values()) and any("down_proj" in name for name in components["language"])

    names = choose_trainable(model, components=["language"], layers=[1, 2], modules=["mlp.down_proj"])
    assert [name.split(".layers.")[1] for name in names] == ["1.mlp.down_proj.weight", "2.mlp.down_proj.weight"]
    assert names == trained_names(model)
    assert count_parameters(model) == (2 * 48 * 32, sum(parameter.numel() for parameter in model.parameters()))
    assert choose_trainable(model, components=["projector"]) == list(components["projector"])
    assert len(choose_trainable(model, components=["language", "projector", "vision"])) == len(list(model.parameters()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_stops_after_its_layer(kind: str, checkpoints: Callable[[str], Path]) -> None:
    folder = str(checkpoints(kind))
    inputs, model = batch(load_processor(folder)), load_model(folder)
    model(**inputs)  # transformers installs lasting hooks of its own in a first forward
    before = hooks_of(model)
    with torch.no_grad():
        for layer in [*range(tiny_models.LAYERS), 0]:
            whole, logits = activations(model, inputs, layer, stop=False)
            with counted_calls(modules_of(model)) as calls:
                stopped, nothing = activations(model, inputs, layer, stop=True)
            assert nothing is None
            assert torch.equal(stopped, whole)
            assert stopped.shape[:2] == inputs["input_ids"].shape, "positions are those of input_ids"
            ran = {str(index): int(index <= layer) for index in range(tiny_models.LAYERS)}
            assert calls == {**ran, "vision": 1, "head": 0}
        assert logits is not None
        assert torch.equal(logits, model(**inputs).logits)
    assert hooks_of(model) == before


@pytest.mark.parametrize("kind", [*KINDS, "paligemma"])
def test_answers_do_not_see_themselves(kind: str, checkpoints: Callable[[str], Path]) -> None:
    folder = str(checkpoints(kind))
    processor, model = load_processor(folder), AutoModelForImageTextToText.from_pretrained(folder)
    inputs = batch(processor, ("red red red", "red red red"))
    other = {key: value.clone() for key, value in inputs.items()}
    place = (inputs["input_ids"][0] == processor.tokenizer("red")["input_ids"][-1]).nonzero()[-1].item()
    other["input_ids"][0, place] = processor.tokenizer("!")["input_ids"][-1]
    with torch.no_grad():
        hidden, _ = activations(model, inputs, tiny_models.LAYERS - 1, stop=True)
        changed, _ = activations(model, other, tiny_models.LAYERS - 1, stop=True)
    sees_later_tokens = not torch.allclose(hidden[:, :place], changed[:, :place], atol=1e-5)
    assert sees_later_tokens == (kind in tiny_models.REFUSED)
    with pytest.raises(ModelError, match="both directions") if sees_later_tokens else nullcontext():
        load_model(folder)


def test_a_stopped_forward_works_in_bf16_autocast(checkpoints: Callable[[str], Path]) -> None:
    folder = str(checkpoints("llava"))
    inputs, model = batch(load_processor(folder)), load_model(folder, gradient_checkpointing=True).train()
    full, _ = activations(model, inputs, 1, stop=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, _ = activations(model, inputs, 1, stop=True)
    assert 0 < (hidden - full).abs().max() < 0.1
    hidden.float().square().mean().backward()
    assert layer_of(model, 1).mlp.down_proj.weight.grad.abs().sum() > 0
    assert load_model(folder, dtype="bfloat16").dtype == torch.bfloat16


def test_hooks_are_removed_when_the_forward_fails(llava: Any) -> None:
    before = hooks_of(llava)
    with pytest.raises(ValueError, match="input_ids"):
        activations(llava, {}, 1, stop=True)
    assert hooks_of(llava) == before


def test_a_layer_or_list_of_layers_that_does_not_exist_is_named(llava: Any) -> None:
    for index in (-1, 3):
        with pytest.raises(ModelError, match=rf"no decoder layer {index}: it has 3\. Choose a layer from 0 to 2"):
            layer_of(llava, index)
    del language_model(llava).layers[0]
    with pytest.raises(ModelError, match=r"LlamaModel has no list of 3 decoder layers .*layers \(2\)"):
        decoder_layers(llava)


# What trains


def test_a_tied_head_trains_with_the_language_model(llava: Any, checkpoints: Callable[[str], Path]) -> None:
    assert "lm_head.weight" in choose_trainable(llava, components=["language"])
    config = read_config(str(checkpoints("llava")))
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    model = meta_model(config)
    model.tie_weights()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert "model.language_model.embed_tokens.weight" in choose_trainable(model, components=["language"])


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"modules": ["mlp.fc2"]}, r"'mlp\.fc2'\. Choose from: self_attn\.q.*mlp\.down_proj"),
        ({"modules": ["down_proj_"]}, "'down_proj_'"),
        ({"layers": [9]}, "no decoder layer 9"),
        ({"components": []}, "at least one component"),
        ({"components": ["eyes"]}, "no component 'eyes' to train. Choose from language, projector, vision"),
        ({"components": ["projector"], "layers": [1]}, "Add language"),
    ],
)
def test_choices_that_match_nothing_list_what_there_is(chosen: dict[str, Any], said: str, llava: Any) -> None:
    with pytest.raises(ModelError, match=said):
        choose_trainable(llava, **{"components": ["language"], **chosen})


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_lie_in_the_language_model_and_change_nothing_at_first(
    kind: str, checkpoints: Callable[[str], Path]
) -> None:
    folder = str(checkpoints(kind))
    inputs, model = batch(load_processor(folder)), load_model(folder)
    with torch.no_grad():
        before = model(**inputs).logits
        wrapped = add_lora(model, LoraSettings(r=2))
        trained = trained_names(wrapped)
        assert len(trained) == tiny_models.LAYERS * 7 * 2
        assert all(".layers." in name and "lora_" in name and "vis" not in name for name in trained)
        assert torch.equal(wrapped(**inputs).logits, before)
        assert len(decoder_layers(wrapped)) == tiny_models.LAYERS
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
        assert not torch.allclose(wrapped(**inputs).logits, before)
        with wrapped.disable_adapter():
            assert torch.equal(wrapped(**inputs).logits, before)
            assert torch.equal(activations(wrapped, inputs, 1, stop=False)[1], before)
        assert not torch.allclose(wrapped(**inputs).logits, before)


def test_only_adapters_train_where_there_are_any(llava: Any) -> None:
    model = add_lora(llava, LoraSettings(r=2))
    names = choose_trainable(model, components=["language"], layers=[2], modules=["mlp.down_proj"])
    ends = [name.rsplit(".layers.")[1].split(".default")[0] for name in names]
    assert ends == ["2.mlp.down_proj.lora_A", "2.mlp.down_proj.lora_B"]
    with pytest.raises(ModelError, match="No adapter lies in the chosen components"):
        choose_trainable(model, components=["projector"])


@pytest.mark.parametrize(
    ("targets", "matched"),
    [(["q_proj", "mlp.down_proj"], 6), ("all-linear", 21), (r".*vision_tower.*\.fc1", 2)],
)
def test_targets_are_endings_all_linear_or_an_expression(targets: list[str] | str, matched: int, llava: Any) -> None:
    model = add_lora(llava, LoraSettings(target_modules=targets))
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == matched


@pytest.mark.parametrize("targets", [["fc1"], ["proj"], ["q_proj", "nope"], "nope.*", "(", r"down_proj"])
def test_targets_that_match_nothing_list_what_there_is(targets: list[str] | str, llava: Any) -> None:
    with pytest.raises(ModelError, match=r"lora\.target_modules.*mlp\.down_proj"):
        add_lora(llava, LoraSettings(target_modules=targets))
    assert not any("lora" in name for name, _ in llava.named_parameters()), "refused before anything was changed"


@pytest.mark.parametrize("wrong", [{"r": 0}, {"lora_alpha": 0}, {"lora_dropout": 1.0}, {"target_modules": []}])
def test_lora_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"lora.{next(iter(wrong))}"):
        LoraSettings(**wrong)


@pytest.mark.real
def test_a_real_checkpoint_with_a_tied_head_stops_and_trains(real_kit: Path) -> None:
    folder = str(real_kit / "smol-llava")
    processor, model = load_processor(folder), load_model(folder, dtype="bfloat16")
    inputs = batch(processor)
    assert len(decoder_layers(model)) == 30 and end_of_answer(processor) == "<|im_end|>"
    assert "lm_head.weight" not in component_parameters(model)["language"], "tied: counted once, under the embeddings"
    choose_trainable(model, components=["language"], layers=[5, 6, 7], modules=["mlp.down_proj"])
    with counted_calls(modules_of(model)) as calls:
        hidden, _ = activations(model, inputs, 7, stop=True)
    assert hidden.shape == (*inputs["input_ids"].shape, 576)
    assert sum(calls.values()) == 9, "vision and layers 0 to 7"
    hidden.float().square().mean().backward()
    assert layer_of(model, 5).mlp.down_proj.weight.grad.abs().sum() > 0


# Where a model comes from


OUTSIDE = ("mirage/nothing", "mirage/../..", "mirage", "no_such_package/x", "/x", "os/x")
ABSENT = {
    "some/model": "allow_download",
    "/nothing": "Name an existing folder",
    mirage.__file__: "There is no model folder",
    **{f"package:{rest}": "names no folder inside an installed package" for rest in OUTSIDE},
}


def test_a_name_is_a_folder_a_package_or_a_permitted_download(tmp_path: Path) -> None:
    assert resolve_pretrained(str(tmp_path)) == str(tmp_path)
    assert Path(resolve_pretrained("package:mirage/data")) == Path(mirage.__file__).parent / "data"
    assert resolve_pretrained("some/model", allow_download=True) == "some/model"
    for name, said in ABSENT.items():
        with pytest.raises(ModelError, match=said):
            resolve_pretrained(name)


def test_a_model_that_is_only_asked_has_no_gradients_and_no_dropout(checkpoints: Callable[[str], Path]) -> None:
    model, processor = load_for_inference(str(checkpoints("llava")), dtype="bfloat16", device="cpu")
    assert not model.training and model.dtype == torch.bfloat16 and processor.tokenizer.pad_token == "<pad>"
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_loading_says_nothing(checkpoints: Callable[[str], Path], capfd: pytest.CaptureFixture[str]) -> None:
    load_processor(str(checkpoints("llava")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add_lora(load_model(str(checkpoints("llava")), gradient_checkpointing=True), LoraSettings())
    assert capfd.readouterr() == ("", "")


Damage = Callable[[Path], object]


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def edit(name: str, **changes: Any) -> Damage:
    return lambda folder: (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **changes}))


def cut(name: str, count: int) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:count])


INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
HEADER = json.dumps({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in ("a", "b")}).encode()
OVERLAPPING = struct.pack("<Q", len(HEADER)) + HEADER + bytes(8)
DAMAGES: dict[str, tuple[Damage, str]] = {
    "no config": (remove("config.json"), "config.json is missing"),
    "config of nothing": (write("config.json", "{}"), "model type None is not known"),
    "config cut": (cut("config.json", 40), "config.json is not valid JSON"),
    "config a list": (write("config.json", "[]"), "no JSON object"),
    "config nested": (write("config.json", "[" * 100_000), "not valid JSON"),
    "text model": (edit("config.json", model_type="llama"), "'llama' is no vision-language model"),
    "vision model": (edit("config.json", model_type="clip_vision_model"), "is no vision-language model"),
    "encoder-decoder": (edit("config.json", model_type="florence2"), "is an encoder-decoder|does not fit"),
    "unknown type": (edit("config.json", model_type="of_the_future"), "'of_the_future' is not known .* is never run"),
    "odd text config": (edit("config.json", text_config=[1]), "'llava' does not fit the rest"),
    "fetched kernel": (edit("config.json", attn_implementation="someone/kernel"), "would fetch code"),
    "adapters": (write("adapter_config.json", "{}"), "adapters may name another base model"),
    "no weights": (remove(WEIGHTS), "model.safetensors is missing.* can run code"),
    "weights cut": (cut(WEIGHTS, 5000), "model.safetensors is cut short"),
    "oversized header": (write(WEIGHTS, "\xff" * 64), "cut short"),
    "overlapping tensors": (write(WEIGHTS, OVERLAPPING), "cut short or is not a safetensors file"),
    "index to nowhere": (write(INDEX, '{"weight_map": {"a": "part-1.safetensors"}}'), "part-1.safetensors is missing"),
    "index outside": (
        write(INDEX, '{"weight_map": {"a": "../../x.safetensors"}}'),
        "no weight files inside the folder",
    ),
    "index of nothing": (write(INDEX, '{"weight_map": 7}'), "no weight files inside"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_found_before_its_weights_are_read(
    damage: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_pretrained(str(copied))
    spoil, said = DAMAGES[damage]
    spoil(copied)
    monkeypatch.setattr(
        AutoModelForImageTextToText, "from_pretrained", lambda *_, **__: pytest.fail("weights are read")
    )
    with pytest.raises(ModelError, match=said) as caught:
        load_model(str(copied))
    assert str(copied) in str(caught.value)


def test_all_faults_are_reported_together(copied: Path) -> None:
    for damage in ("fetched kernel", "adapters", "no weights"):
        DAMAGES[damage][0](copied)
    with pytest.raises(ModelError) as caught:
        check_pretrained(str(copied))
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove("preprocessor_config.json"), "its processor cannot be loaded"),
        (remove("tokenizer.json"), "its processor cannot be loaded"),
        (cut("tokenizer.json", 100), "its processor cannot be loaded"),
        (edit("tokenizer_config.json", eos_token=None), "eos_token"),
    ],
    ids=["no images", "no tokenizer", "tokenizer cut", "no end"],
)
def test_a_damaged_processor_is_refused(damage: Damage, said: str, copied: Path) -> None:
    damage(copied)
    with pytest.raises(ModelError, match=said) as caught:
        load_processor(str(copied))
    assert str(copied) in str(caught.value)


def test_weights_that_do_not_fit_the_config_are_refused(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    for changed, said in (
        ({"num_hidden_layers": 4}, r"lacks .*layers\.3"),
        ({"num_hidden_layers": 3, "intermediate_size": 40}, r"down_proj.* or has another shape"),
    ):
        config["text_config"] |= changed
        (copied / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match=said):
            load_model(str(copied))


# Nothing of a folder is run


def test_code_in_a_model_folder_is_never_run(copied: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marks = f"open({str(marker)!r}, 'w').close()\n"
    for name in ("modeling_evil", "processing_evil", "tokenization_evil", "configuration_evil"):
        (copied / f"{name}.py").write_text(f"{marks}class Evil: pass\n")
    (copied / "custom_generate").mkdir()
    (copied / "custom_generate" / "generate.py").write_text(f"{marks}def generate(): pass\n")
    image, tokens = "processing_evil.Evil", ["tokenization_evil.Evil", "tokenization_evil.Evil"]
    maps = {"AutoConfig": "configuration_evil.Evil", "AutoModelForImageTextToText": "modeling_evil.Evil"}
    edit("config.json", auto_map={**maps, "AutoProcessor": image})(copied)
    edit("processor_config.json", auto_map={"AutoProcessor": image})(copied)
    edit("preprocessor_config.json", auto_map={"AutoImageProcessor": image})(copied)
    edit("tokenizer_config.json", auto_map={"AutoTokenizer": tokens})(copied)
    edit("generation_config.json", auto_map={"custom_generate": "custom_generate"})(copied)
    processor, model = load_processor(str(copied)), load_model(str(copied))
    model.generate(**batch(processor), max_new_tokens=1)
    assert not marker.exists()

    edit("config.json", model_type="evil")(copied)
    edit("processor_config.json", processor_class="EvilProcessor")(copied)
    edit("tokenizer_config.json", tokenizer_class="EvilTokenizer")(copied)
    with pytest.raises(ModelError, match="never run"):
        load_model(str(copied))
    for load in (load_processor, read_config):
        with pytest.raises(ModelError, match="is code in that folder, which mirage never runs") as caught:
            load(str(copied))
        assert "trust" not in str(caught.value), "transformers advises to trust it"
    assert not marker.exists()


def test_every_call_that_loads_refuses_remote_code() -> None:
    calls = 0
    for path in Path(mirage.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".from_pretrained", ".from_config")):
                calls += 1
                trust = {word.arg: word.value for word in node.keywords}.get("trust_remote_code")
                assert isinstance(trust, ast.Constant) and trust.value is False, f"{path.name}, line {node.lineno}"
    assert calls >= 8


HOSTILE_TEMPLATES = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "import": "{% import 'os' as os %}{{ os.system('true') }}",
    "endless": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "broken": "{% for m in messages %}",
}


@pytest.mark.parametrize("template", HOSTILE_TEMPLATES)
def test_a_hostile_template_is_refused_in_bounded_time(template: str, copied: Path) -> None:
    write("chat_template.jinja", HOSTILE_TEMPLATES[template])(copied)
    before = sys.gettrace()
    with pytest.raises(ModelError, match=r"chat template of LlavaProcessor (fails|writes)"):
        load_processor(str(copied), template_seconds=0.1)
    assert sys.gettrace() is before, "what bounds the time leaves nothing behind"


# Chat templates

GOOD = tiny_models.template("<image>\n")
SAID = "{{ c['text'] }}"
TEMPLATE_FAULTS = {
    "drops the image": (GOOD.replace("<image>\n", ""), "'<image>' 0 times into a prompt"),
    "doubles the image": (GOOD.replace("<image>\n", "<image><image>"), "'<image>' 2 times into a prompt"),
    "image always": ("<image>" + GOOD.replace("<image>\n", ""), "1 times into a prompt without a picture"),
    "text after the answer": (GOOD.replace("<|im_end|>\n{% endfor %}", "<|im_end|> Bye.{% endfor %}"), "'Bye.' after"),
    "no answer": (GOOD.replace(SAID, "{% if m['role'] == 'user' %}" + SAID + "{% endif %}"), "'Orange, .*' 0 times"),
    "question twice": (GOOD.replace(SAID, SAID + SAID), r"'Which colour has it\?' 2 times into a conversation"),
    "another prompt": (GOOD.replace("<|im_start|>assistant\n{% endif %}", "Bot: {% endif %}"), "than its prompt"),
    "none": ("", "or its image_token is missing"),
}


@pytest.mark.parametrize("fault", TEMPLATE_FAULTS)
def test_a_template_that_cannot_be_trained_with_is_refused(fault: str, copied: Path) -> None:
    text, said = TEMPLATE_FAULTS[fault]
    write("chat_template.jinja", text)(copied)
    with pytest.raises(ModelError, match=said) as caught:
        load_processor(str(copied))
    assert "LlavaProcessor" in str(caught.value) and str(copied) in str(caught.value)


@pytest.mark.parametrize("place", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_a_template_is_found_wherever_a_folder_keeps_it(place: str, copied: Path) -> None:
    remove("chat_template.jinja")(copied)
    if place == "tokenizer_config.json":
        edit(place, chat_template=GOOD)(copied)
    else:
        write(place, GOOD if place.endswith("jinja") else json.dumps({"chat_template": GOOD}))(copied)
    processor = load_processor(str(copied))
    assert processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}]).count("<image>") == 1
    assert end_of_answer(processor) == "<|im_end|>"


def test_a_template_without_an_end_token_ends_answers_with_eos(copied: Path) -> None:
    vicuna = (
        "{% for m in messages %}{{ m['role'].upper() }}: {% for c in m['content'] if c['type'] == 'image' %}<image>\n"
        "{% endfor %}{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }} {% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    write("chat_template.jinja", vicuna)(copied)
    processor = load_processor(str(copied))
    assert end_of_answer(processor) == processor.tokenizer.eos_token


def test_the_tokenizer_adds_no_opening_token_that_the_template_has_written(checkpoints: Callable[[str], Path]) -> None:
    processor = load_processor(str(checkpoints("llava")))
    assert [adds_special_tokens(processor, text) for text in ("<|im_start|>user\nHow?", "How?")] == [False, True]


def test_a_missing_pad_token_becomes_the_end_token(copied: Path) -> None:
    content = json.loads((copied / "tokenizer_config.json").read_text())
    del content["pad_token"]
    write("tokenizer_config.json", json.dumps(content))(copied)
    assert load_processor(str(copied)).tokenizer.pad_token == "<|im_end|>"


@pytest.mark.parametrize("kind", KINDS)
def test_a_processor_survives_a_worker_and_a_save(
    kind: str, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    processor = load_processor(str(checkpoints(kind)))
    processor.save_pretrained(tmp_path)
    expected = batch(processor)
    for other in (pickle.loads(pickle.dumps(processor)), load_processor(str(tmp_path))):
        assert type(other) is type(processor)
        for key, value in batch(other).items():
            assert torch.equal(value, expected[key]), key


def test_padding_to_a_square_keeps_the_picture_and_fills_with_the_mean(checkpoints: Callable[[str], Path]) -> None:
    processor = load_processor(str(checkpoints("llava")))
    picture = Image.new("RGB", (4, 2), (255, 0, 0))
    padded = pad_to_square(picture, processor)
    mean = tuple(int(255 * channel) for channel in processor.image_processor.image_mean)
    assert [padded.getpixel((1, y)) for y in range(4)] == [mean, (255, 0, 0), (255, 0, 0), mean]
    tall = pad_to_square(Image.new("RGB", (1, 4)), processor)
    assert tall.size == (4, 4) and [tall.getpixel((x, 0)) for x in range(4)] == [mean, (0, 0, 0), mean, mean]
    assert pad_to_square(padded, processor) is padded


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
@pytest.mark.parametrize("kind", tiny_models.WITH_TORCHVISION)
def test_without_torchvision_a_processor_that_needs_it_says_so_and_the_language_model_is_found(
    kind: str, checkpoints: Callable[[str], Path]
) -> None:
    folder = str(checkpoints(kind))
    with pytest.raises(
        ModelError, match=r"torchvision, which is not installed: pip install torchvision, or .*\[vision\]"
    ):
        load_processor(folder)
    assert needs_torchvision(folder) and not needs_torchvision(str(checkpoints("llava")))
    model = load_model(folder)
    inputs = dict(AutoTokenizer.from_pretrained(folder)(["What is red?"], return_tensors="pt"))
    inputs.pop("token_type_ids", None)
    components = component_parameters(model)
    assert sorted(name for names in components.values() for name in names) == sorted(dict(model.named_parameters()))
    with torch.no_grad():
        whole, stopped = (activations(model, inputs, 1, stop=stop)[0] for stop in (False, True))
    assert torch.equal(stopped, whole)
    choose_trainable(model, components=["language"], layers=[1])
    activations(model, inputs, 1, stop=True)[0].square().sum().backward()
    trained = {name for name in trained_names(model) if "experts" not in name}  # one of two is asked
    assert all(dict(model.named_parameters())[name].grad is not None for name in trained)
    adapted = trained_names(add_lora(model, LoraSettings(r=2)))
    assert adapted and not any("vision" in name for name in adapted)


# Memory


def test_the_7b_shapes_are_known_without_their_weights() -> None:
    seven = partial(estimate, llava_1_5_7b(), dtype="bfloat16", batch_tokens=4 * 700)
    full, kept = seven(gradient_checkpointing=True), seven()
    assert full.parameters == full.trainable == 7_063_427_072
    assert full.weights_gib == pytest.approx(13.16, abs=0.01)
    assert full.optimizer_gib == pytest.approx(2 * full.weights_gib), "two moments of the type of the weights"
    assert kept.activations_gib > 4 * full.activations_gib

    rmu = partial(choose_trainable, components=["language"], layers=[5, 6, 7], modules=["mlp.down_proj"])
    assert seven(trainable=rmu).trainable == 3 * 4096 * 11008
    adapted = seven(trainable=partial(add_lora, settings=LoraSettings(r=8)))
    assert adapted.trainable == 32 * 8 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    assert str(adapted).startswith(f"{adapted.trainable:,} of {full.parameters + adapted.trainable:,} parameters train")
    halved = seven(shards=2)
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    gathered = full.parameters - 30 * layer  # two layers and all that is in none
    assert halved.weights_gib == pytest.approx(full.weights_gib / 2 + 2 * gathered / 2**30)
    assert halved.activations_gib == kept.activations_gib


def test_the_estimate_of_activations_is_near_what_autograd_keeps(checkpoints: Callable[[str], Path]) -> None:
    config = read_config(str(checkpoints("llava")))
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.num_attention_heads = 128, 344, 6, 4
    text.head_dim, text.num_key_value_heads = 32, 4
    model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.randint(10, 200, (2, 100))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=tokens, labels=tokens, use_cache=False)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    guess = estimate(config, dtype="float32", batch_tokens=200).activations_gib * 2**30
    assert 0.8 < guess / measured < 1.25
