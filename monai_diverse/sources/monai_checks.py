"""Whether a MONAI network takes what it is to be given, found without computing anything: one line at construction, not a traceback later."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from monai_diverse.errors import DataError
from monai_diverse.sources.conditioning import Conditioning
from monai_diverse.sources.precision import Precision

SWITCHED_INPUTS = {
    "include_top_region_index_input": "top_region_index_tensor",
    "include_bottom_region_index_input": "bottom_region_index_tensor",
    "include_spacing_input": "spacing_tensor",
}
"""Switches of DiffusionModelUNetMaisi and the inputs that they add; without them it ignores those inputs silently."""


def check_inputs(unet: Any, sample_shape: tuple[int, ...], told: Conditioning, extra: Mapping[str, Tensor]) -> None:
    """Compares what the network is given with how it was built, as far as its attributes tell.

    Raises:
        DataError: an input too few, too many, or of another kind than the network was built with.
    """
    given, taken = {*told.inputs, *extra}, _parameters(unet)
    unknown = sorted(given - {"concat"} - taken)
    if unknown and "**" not in taken:
        raise DataError(f"conditioning: expected inputs that {type(unet).__name__} takes ({', '.join(sorted(taken))}), got {unknown[0]}")
    if set(told.inputs) & set(extra) or "concat" in extra:
        raise DataError(f"extra_inputs: expected inputs that are not conditioning already, and no concat, got {', '.join(extra)}")
    for name, value in extra.items():
        if value.ndim < 1 or value.shape[0] != 1:
            raise DataError(f"extra_inputs: expected {name} of shape (1, ...), which is repeated for each image, got {tuple(value.shape)}")
    for switch, name in SWITCHED_INPUTS.items():
        if getattr(unet, switch, False) and name not in given:
            raise DataError(f"extra_inputs: expected {name} for a network built with {switch}, got none; give it, of shape (1, ...)")
        if not getattr(unet, switch, True) and name in given:
            raise DataError(f"extra_inputs: expected no {name} for a network built without {switch}, got one; leave it out")
    _check_labels(unet, told, extra)
    _check_context(unet, told, extra)
    _check_channels(unet, sample_shape, told)


def _parameters(unet: Any) -> set[str]:
    """What it takes beside x and timesteps; ** if it takes anything."""
    beside = list(inspect.signature(unet.forward).parameters.values())[2:]
    return {"**" if parameter.kind is inspect.Parameter.VAR_KEYWORD else parameter.name for parameter in beside}


def _check_labels(unet: Any, told: Conditioning, extra: Mapping[str, Tensor]) -> None:
    if not hasattr(unet, "num_class_embeds"):
        return
    count, labels = unet.num_class_embeds, told.inputs.get("class_labels", extra.get("class_labels"))
    if (count is None) != (labels is None):
        if count is None:
            raise DataError("conditioning: expected no class_labels for a network without class embeddings, got some; leave them out")
        raise DataError(f"conditioning: expected class_labels for a network with {count} class embeddings, got none; give torch.arange(classes)")
    if labels is None:
        return
    null = (told.null or {}).get("class_labels", 0)
    for values, what in ((labels, "class_labels"), (torch.as_tensor(null), "a null class_labels")):
        whole = not values.is_floating_point() or bool((values == values.round()).all())
        if not whole or int(values.min()) < 0 or int(values.max()) >= int(count):
            raise DataError(f"conditioning: expected {what} of whole numbers 0..{int(count) - 1}, got {values.flatten()[:8].tolist()}")


def _check_context(unet: Any, told: Conditioning, extra: Mapping[str, Tensor]) -> None:
    if not hasattr(unet, "with_conditioning"):
        return
    context = told.inputs.get("context", extra.get("context"))
    # the width is stored nowhere else; self-attention blocks have another class
    widths = {int(m.context_input_size) for m in unet.modules() if type(m).__name__ == "CrossAttentionBlock"}
    wanted = f"context (classes, tokens, {min(widths, default=0)})"
    if not unet.with_conditioning and context is not None:
        raise DataError("conditioning: expected no context for a network built without with_conditioning, got some; leave it out")
    if unet.with_conditioning and (context is None or context.ndim != 3 or {context.shape[2]} != widths):
        got = "none" if context is None else str(tuple(context.shape))
        raise DataError(f"conditioning: expected {wanted} for a network with cross-attention, got {got}")


def _check_channels(unet: Any, sample_shape: tuple[int, ...], told: Conditioning) -> None:
    concat = told.inputs.get("concat")
    if concat is not None and (concat.ndim < 2 or tuple(concat.shape[2:]) not in ((), sample_shape[1:])):
        raise DataError(f"conditioning: expected concat (classes, channels) or (classes, channels, *{sample_shape[1:]}), got {tuple(concat.shape)}")
    have, appended = getattr(unet, "in_channels", None), 0 if concat is None else concat.shape[1]
    if have is not None and have != sample_shape[0] + appended:
        raise DataError(f"unet: expected {have} input channels, got {sample_shape[0]} of sample_shape and {appended} of concat")


def shape_of(module: nn.Module, precision: Precision, what: str, shape: tuple[int, ...], *others: Tensor | dict[str, Tensor]) -> tuple[int, ...]:
    """The shape of module(x, *others), from a run on tensors without storage: no memory, no arithmetic, a moment at any size.

    Args:
        module: called; its weights are not touched.
        precision: in which it will run.
        what: names it in errors.
        shape: (n, ...) of x.
        others: what it takes beside x; shapes and types count, not values.

    Raises:
        DataError: it refuses such input.
    """
    weights = dict(module.named_parameters()) | dict(module.named_buffers())
    device = next((weight.device for weight in weights.values()), torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        # the precision is set later, when everything is known to fit; casting such tensors costs nothing
        cast = {name: weight.to(getattr(torch, precision.dtype)) if weight.is_floating_point() else weight for name, weight in weights.items()}
        try:
            x, rest = torch.empty(shape, device=device), [_empty(other, device) for other in others]
            return tuple(precision.run(lambda *inputs: functional_call(module, cast, inputs), x, *rest).shape)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise DataError(f"{what}: expected to take input {shape}, but it refuses: {reason}") from error


def _empty(like: Tensor | dict[str, Tensor], device: torch.device) -> Any:
    if isinstance(like, dict):
        return {name: _empty(value, device) for name, value in like.items()}
    return torch.empty(like.shape, dtype=like.dtype, device=device)
