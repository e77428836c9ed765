"""The output of one decoder layer, by a forward pass that may stop there, and may start in the middle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NoReturn

from torch import Tensor, nn

from mirage.models.components import decoder_layers, language_model, layer_of, unwrapped


class _Stop(Exception):
    """Ends a forward pass that has produced what was asked for."""


def activations(model: nn.Module, inputs: Mapping[str, Any], layer: int, *, stop: bool) -> tuple[Tensor, Tensor | None]:
    """The output of decoder layer `layer` (from 0) in one forward pass, and the logits unless it stopped there.

    With `stop` the vision tower and layers 0 to `layer` run; no later layer and no output head does. Gradients
    flow as in any forward pass. Positions are those of `input_ids`.

    Returns:
        Hidden states (batch, sequence, width) and logits (batch, sequence, vocabulary) or None.

    Raises:
        ModelError: If the model has no such layer.
    """
    layers, base = decoder_layers(model), unwrapped(model)
    target = layer_of(model, layer)
    captured: list[Tensor] = []

    def capture(module: nn.Module, args: Any, output: Any) -> None:
        captured.append(_states(output))

    def end(*_: Any) -> NoReturn:
        raise _Stop

    def ended(*args: Any, **kwargs: Any) -> Any:
        with suppress(_Stop):
            return whole_pass(*args, **kwargs)
        return captured[0]  # the model's output: what is hooked to it (FSDP) ends as after a whole pass

    whole_pass = base.forward
    with ExitStack() as hooks:
        hooks.callback(target.register_forward_hook(capture).remove)
        if stop and layer + 1 < len(layers):
            # Before the next layer, not inside this one: a checkpointed layer must return for its recomputation
            # to be set up. First in line, so that nothing is gathered for a layer that will not run.
            hooks.callback(layers[layer + 1].register_forward_pre_hook(end, prepend=True).remove)
        elif stop:
            hooks.callback(language_model(model).register_forward_hook(end).remove)
        if stop:
            base.forward = ended
            hooks.callback(delattr, base, "forward")
        output = model(**inputs, use_cache=False)
    (hidden_BSD,) = captured
    return hidden_BSD, None if stop else output.logits


@contextmanager
def entering(model: nn.Module, layer: int) -> Iterator[list[Tensor]]:
    """A list to which every forward pass within the block adds what enters decoder layer `layer`: (B, S, D)."""
    captured: list[Tensor] = []
    if layer == 0:
        handle = language_model(model).register_forward_pre_hook(
            lambda module, args, kwargs: captured.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
    else:
        below = layer_of(model, layer - 1)
        handle = below.register_forward_hook(lambda module, args, output: captured.append(_states(output)))
    try:
        yield captured
    finally:
        handle.remove()


@contextmanager
def starting_at(model: nn.Module, layer: int, states_BSD: Tensor) -> Iterator[None]:
    """Within the block a forward pass starts with `states_BSD` in decoder layer `layer`; the layers below do not run.

    The model's forward is called as ever, without `pixel_values`: it makes masks and positions of the other inputs.
    It is right for models in which the picture reaches the layers above by `states_BSD` alone; compare once.
    """
    below = decoder_layers(model)[:layer]
    with ExitStack() as undo:
        if layer == 0:
            hook = language_model(model).register_forward_pre_hook(
                lambda module, args, kwargs: (args, {**kwargs, "inputs_embeds": states_BSD}), with_kwargs=True
            )
            undo.callback(hook.remove)
        for skipped in below:
            # Not by a hook before the layer: a checkpointed layer recomputes from its arguments, after hooks are gone.
            skipped.forward = lambda *args, **kwargs: states_BSD
            undo.callback(delattr, skipped, "forward")
        yield


def _states(output: Any) -> Tensor:
    """The hidden states in what a decoder layer returns."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states
