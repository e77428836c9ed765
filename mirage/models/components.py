"""The components of a vision-language model, from the model itself: decoder layers, language, projector, vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, cast, get_args

from torch import nn

from mirage.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Component = Literal["language", "projector", "vision"]


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    from peft import PeftModel

    return cast("PreTrainedModel", model.get_base_model() if isinstance(model, PeftModel) else model)


def language_model(model: nn.Module) -> nn.Module:
    """The decoder of a vision-language model: the module that holds its text layers, without the output head.

    Raises:
        ModelError: If the model does not name that module.
    """
    base = unwrapped(model)
    decoder = base.get_decoder()  # type: ignore[no-untyped-call]
    decoder = getattr(decoder, "model", decoder)  # Llama 4 gives its decoder with the output head around it
    if not isinstance(decoder, nn.Module) or decoder is base:
        raise ModelError(f"{type(base).__name__} names no language decoder (get_decoder). Use another model.")
    return decoder


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers in order: the list in the language model that is as long as its config says.

    Raises:
        ModelError: If there is no such list, or several.
    """
    decoder, base = language_model(model), unwrapped(model)
    count = base.config.get_text_config(decoder=True).num_hidden_layers
    lists = {name: module for name, module in decoder.named_children() if isinstance(module, nn.ModuleList)}
    fitting = [module for module in lists.values() if len(module) == count]
    if len(fitting) != 1:
        present = ", ".join(f"{name} ({len(module)})" for name, module in lists.items()) or "none"
        raise ModelError(
            f"{type(base).__name__}: {type(decoder).__name__} has no list of {count} decoder layers "
            f"(its lists: {present}). Use another model."
        )
    return fitting[0]


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


def vision_tower(model: nn.Module) -> nn.Module:
    """The module that turns pixels into features.

    Raises:
        ModelError: If the model does not name that module.
    """
    base = unwrapped(model)
    decoder, tower = language_model(model), base.get_encoder(modality="image")
    if not isinstance(tower, nn.Module) or any(module is decoder for module in tower.modules()):
        raise ModelError(f"{type(base).__name__} names no vision tower (get_encoder('image')). Use another model.")
    return tower


def component_parameters(model: nn.Module) -> dict[Component, dict[str, nn.Parameter]]:
    """Every parameter by name, in exactly one component.

    The output head and tied embeddings count as language. The projector is what lies between vision and language, or a
    merger inside the vision tower; it may be empty.

    Raises:
        ModelError: If the model names no language decoder or no vision tower.
    """
    base, tower = unwrapped(model), vision_tower(model)
    head = base.get_output_embeddings()  # type: ignore[no-untyped-call]
    language = _names_under(model, language_model(model), *([head] if isinstance(head, nn.Module) else []))
    vision = _names_under(model, tower) - language
    parameters = dict(model.named_parameters())
    projector = parameters.keys() - language - vision
    if not projector:
        projector = _names_under(model, *_merger(tower, base.config.get_text_config(decoder=True).hidden_size))
    members: dict[Component, set[str]] = {"language": language, "projector": projector, "vision": vision - projector}
    return {
        component: {name: parameter for name, parameter in parameters.items() if name in names}
        for component, names in members.items()
    }


def _names_under(model: nn.Module, *modules: nn.Module) -> set[str]:
    inside = {id(parameter) for module in modules for parameter in module.parameters()}
    # every name of a shared parameter, so that a tied head is listed under both
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if id(parameter) in inside}


def _merger(tower: nn.Module, hidden_size: int) -> list[nn.Module]:
    """The last child of a vision tower that ends in the language model's width; empty if there is none."""
    for child in reversed(list(tower.children())):
        linears = [module for module in child.modules() if isinstance(module, nn.Linear)]
        if not isinstance(child, nn.ModuleList) and linears and linears[-1].out_features == hidden_size:
            return [child]
    return []


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
        ModelError: If nothing is chosen, or a component, layer or module does not exist.
    """
    members = component_parameters(model)
    existing = [component for component in get_args(Component) if members[component]]
    if lacking := [component for component in components if component not in existing]:
        name = type(unwrapped(model)).__name__
        raise ModelError(f"{name} has no component {lacking[0]!r} to train. Choose from {', '.join(existing)}.")
    chosen = {name for component in components for name in members[component]}
    if layers is not None or modules is not None:
        if "language" not in components:
            raise ModelError("Layers or modules are chosen, which lie in language. Add language to the components.")
        chosen = chosen - members["language"].keys() | _names_in_layers(model, layers, modules)
    adapters = set()
    if unwrapped(model) is not model:
        adapters = {name for name, _ in model.named_parameters() if "lora_" in name}
        chosen &= adapters
    if not chosen:
        remedy = "No adapter lies in the chosen components: widen target_modules."
        raise ModelError(f"No parameter would train. {remedy if adapters else 'Choose at least one component.'}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return [name for name, _ in model.named_parameters() if name in chosen]


def _names_in_layers(model: nn.Module, layers: Sequence[int] | None, modules: Sequence[str] | None) -> set[str]:
    names: set[str] = set()
    for index in range(len(decoder_layers(model))) if layers is None else layers:
        layer = layer_of(model, index)
        for suffix in modules or [""]:  # "" is the layer itself
            matching = [part for name, part in layer.named_modules() if ends_with(name, suffix)]
            if not matching:
                known = ", ".join(linear_names(layer))
                raise ModelError(f"Decoder layer {index} has no module {suffix!r}. Choose from: {known}.")
            names |= _names_under(model, *matching)
    return names


def ends_with(name: str, suffix: str) -> bool:
    """True if the dotted `name` ends with the dotted `suffix`, whole words only."""
    return f".{name}".endswith(f".{suffix}")


def linear_names(module: nn.Module) -> list[str]:
    """The dotted names of the linear layers in `module`, in order, adapters not included."""
    return [
        name.removesuffix(".base_layer")
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and "lora_" not in name
    ]
