"""Weights split over all ranks by torch's FSDP2: each decoder layer is gathered when it runs, and everything else with it.

[same forward] Under split weights a forward pass is a collective operation, so every rank must run equally many. Vision
tower, projector, embeddings and head are one group that every forward pass gathers, whatever its input: a pass over text,
over pictures or over one token is the same to the other ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mirage.models.components import decoder_layers, unwrapped


def shard(model: nn.Module, device: torch.device, precision: str) -> None:
    """Splits every parameter over all ranks, in place; the model is whole on this rank, and the same on all.

    Args:
        model: The model, with or without adapters, once what trains has been chosen.
        device: Where this rank's share is put.
        precision: Lightning's: `bf16-mixed` gathers and computes in bfloat16, and reduces gradients in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    mixed = precision == "bf16-mixed"
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if mixed else MixedPrecisionPolicy()
    # The root too is freed after its forward pass: RMU's next pass may be the reference's, with other weights.
    for module in (*decoder_layers(model), unwrapped(model)):
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    """True if the weights of the model are split over ranks."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(unwrapped(model), FSDPModule)


def gathered(value: Any) -> list[Any]:
    """The value that each rank gives, in order of rank. Every rank must ask."""
    if not dist.is_initialized():
        return [value]
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, gathered from all ranks if it is split. Every rank must ask."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextmanager
def in_step(model: nn.Module) -> Iterator[None]:
    """Within the block, ranks may run different numbers of forward passes of a split model. See [same forward].

    Before each pass ranks ask each other whether any still has one to run. A rank that leaves the block, by an error
    too, goes on with passes of one token, of no weight, until all have left. A model that is not split is left alone.
    """
    if not is_sharded(model):
        yield
        return
    network: Any = unwrapped(model)

    def someone_runs(mine: bool) -> bool:
        running = torch.tensor(int(mine), device=network.device)
        dist.all_reduce(running)
        return bool(running)

    def announce(*_: Any) -> None:
        someone_runs(True)

    hook = network.register_forward_pre_hook(announce, prepend=True)
    # What is in no decoder layer stays gathered: `generate` of some models calls the vision tower by itself.
    network.set_reshard_after_forward(False, recurse=False)
    network.unshard()
    try:
        yield
    finally:
        hook.remove()
        with torch.no_grad():
            while someone_runs(False):
                network(input_ids=torch.zeros(1, 1, dtype=torch.long, device=network.device), use_cache=False)
        network.set_reshard_after_forward(True, recurse=False)
        network.reshard()
