"""The parts of a vision-language model, found from the model itself: decoder layers, language, projector, vision."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, cast

from torch import nn

from mirage.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Component = Literal["language", "projector", "vision"]
COMPONENTS: tuple[Component, ...] = ("language", "projector", "vision")


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    inner = getattr(model, "get_base_model", None)
    return cast("PreTrainedModel", inner() if callable(inner) else model)


def language_model(model: nn.Module) -> nn.Module:
    """The decoder of a vision-language model: the module that holds its text layers, without the output head.

    Raises:
        ModelError: If the model does not tell which module that is.
    """
    base = unwrapped(model)
    get_decoder = getattr(base, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else None
    if not isinstance(decoder, nn.Module) or decoder is base:
        raise ModelError(f"{type(base).__name__}: no language decoder was found (get_decoder). Use another model.")
    return decoder


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers in order: the list inside the language model that is as long as its config says.

    Raises:
        ModelError: If there is no such list, or several.
    """
    decoder = language_model(model)
    config = unwrapped(model).config.get_text_config(decoder=True)
    count = getattr(config, "num_hidden_layers", None)
    lists = {name: part for name, part in decoder.named_modules() if isinstance(part, nn.ModuleList)}
    fitting = {name: part for name, part in lists.items() if len(part) == count}
    # a list inside another's layer (experts of a mixture) is not the list of layers
    outermost = [part for name, part in fitting.items() if not any(name.startswith(f"{other}.") for other in fitting)]
    if len(outermost) != 1:
        found = ", ".join(f"{name} ({len(part)})" for name, part in lists.items()) or "none"
        raise ModelError(
            f"{type(unwrapped(model)).__name__}: the list of {count} decoder layers was not found in "
            f"{type(decoder).__name__} (lists there: {found}). Use another model."
        )
    return outermost[0]


def layer_of(model: nn.Module, index: int) -> nn.Module:
    """Decoder layer `index`, counted from 0.

    Raises:
        ModelError: If the model has no such layer.
    """
    layers = decoder_layers(model)
    if not 0 <= index < len(layers):
        raise ModelError(
            f"{type(unwrapped(model)).__name__} has no decoder layer {index}: it has {len(layers)}. "
            f"Choose a layer from 0 to {len(layers) - 1}."
        )
    return layers[index]


def _names_under(model: nn.Module, part: nn.Module) -> set[str]:
    inside = {id(parameter) for parameter in part.parameters()}
    # every name of a shared parameter, so that a tied head is found under both
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if id(parameter) in inside}


def language_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The language model's parameters by name, output head and tied embeddings included."""
    base = unwrapped(model)
    names = _names_under(model, language_model(model))
    head = base.get_output_embeddings()  # type: ignore[no-untyped-call]
    if isinstance(head, nn.Module):
        names |= _names_under(model, head)
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


def vision_tower(model: nn.Module) -> nn.Module:
    """The module that turns pixels into features.

    Raises:
        ModelError: If the model does not tell which module that is.
    """
    base = unwrapped(model)
    decoder = language_model(model)
    tower = base.get_encoder(modality="image")
    contains_decoder = isinstance(tower, nn.Module) and any(part is decoder for part in tower.modules())
    if not isinstance(tower, nn.Module) or contains_decoder:
        raise ModelError(f"{type(base).__name__}: no vision tower was found (get_encoder('image')). Use another model.")
    return tower


def _merger_in(tower: nn.Module, hidden_size: int) -> nn.Module | None:
    """The child of a vision tower that ends in the language model's width, where the tower holds its own projector."""
    for child in reversed(list(tower.children())):
        linears = [part for part in child.modules() if isinstance(part, nn.Linear)]
        if not isinstance(child, nn.ModuleList) and linears and linears[-1].out_features == hidden_size:
            return child
    return None


def projector_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters between vision and language by name: all that belong to neither, or the tower's own merger.

    Raises:
        ModelError: If there are none.
    """
    base = unwrapped(model)
    tower = vision_tower(model)
    taken = _names_under(model, tower) | set(language_parameters(model))
    between = {name: parameter for name, parameter in model.named_parameters() if name not in taken}
    if between:
        return between
    merger = _merger_in(tower, base.config.get_text_config(decoder=True).hidden_size)
    if merger is None:
        raise ModelError(f"{type(base).__name__}: no projector was found between vision and language. Leave it frozen.")
    names = _names_under(model, merger)
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


def vision_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The vision tower's parameters by name, without a projector that lives inside it."""
    names = _names_under(model, vision_tower(model))
    with suppress(ModelError):  # a tower without any projector: all of it is vision
        names -= set(projector_parameters(model))
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


def choose_trainable(
    model: nn.Module,
    *,
    components: Sequence[Component],
    layers: Sequence[int] | None = None,
    modules: Sequence[str] | None = None,
) -> list[str]:
    """Freezes all but the chosen parameters and returns the names of those that train.

    Args:
        model: The model, with or without adapters. With adapters only these train, so that the model with its
            adapters off stays the starting model.
        components: Which components are trained. The output head and tied embeddings count as language.
        layers: Limit language to these decoder layers.
        modules: Limit the chosen layers (all, without `layers`) to modules whose name ends so, such as `mlp.down_proj`.

    Raises:
        ModelError: If nothing is chosen, or a layer or module does not exist.
    """
    unknown = [component for component in components if component not in COMPONENTS]
    if unknown:
        raise ModelError(f"The model has no component {unknown[0]!r}. Choose from {', '.join(COMPONENTS)}.")
    if "language" not in components and (layers is not None or modules is not None):
        raise ModelError(
            "Layers and modules are chosen, but not the component they lie in. Add language to the components."
        )
    chosen: set[str] = set()
    if "language" in components:
        chosen |= _language_names(model, layers, modules)
    if "projector" in components:
        chosen |= set(projector_parameters(model))
    if "vision" in components:
        chosen |= set(vision_parameters(model))
    adapters = adapter_names(model)
    if adapters:
        chosen &= adapters
    if not chosen:
        raise ModelError(
            "No parameter would train. "
            + (
                "No adapter lies in the chosen components: widen target_modules."
                if adapters
                else "Choose at least one component."
            )
        )
    trainable = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
        if name in chosen:
            trainable.append(name)
    return trainable


def adapter_names(model: nn.Module) -> set[str]:
    """The names of the parameters that PEFT added; empty without adapters."""
    if unwrapped(model) is model:
        return set()
    prefix = str(model.base_model.prefix)  # type: ignore[union-attr]  # PEFT's tuner; "lora_"
    return {name for name, _ in model.named_parameters() if prefix in name}


def _language_names(model: nn.Module, layers: Sequence[int] | None, modules: Sequence[str] | None) -> set[str]:
    if layers is None and modules is None:
        return set(language_parameters(model))
    every = decoder_layers(model)
    indices = range(len(every)) if layers is None else layers
    names: set[str] = set()
    for index in indices:
        layer = layer_of(model, index)
        if modules is None:
            names |= _names_under(model, layer)
            continue
        for suffix in modules:
            matching = [part for name, part in layer.named_modules() if ends_with(name, suffix)]
            if not matching:
                raise ModelError(
                    f"Decoder layer {index} has no module {suffix!r}. Choose from: {', '.join(linear_names(layer))}."
                )
            for part in matching:
                names |= _names_under(model, part)
    return names


def ends_with(name: str, suffix: str) -> bool:
    """True if the dotted `name` ends with the dotted `suffix`, whole words only."""
    return name == suffix or name.endswith(f".{suffix}")


def linear_names(module: nn.Module) -> list[str]:
    """The dotted names of the linear layers in `module`, in order, without adapters' own."""
    names = []
    for name, part in module.named_modules():
        wrapped = getattr(part, "base_layer", None)
        if isinstance(wrapped, nn.Linear) or (isinstance(part, nn.Linear) and ".base_layer" not in f".{name}"):
            names.append(name)
    return [name for name in names if not any(word.startswith("lora_") for word in name.split("."))]
