"""Attention and heads for pairs packed into one row (data/packing.py), in transformers' own models.

Contract: logits and gradients of packed pairs equal those of padded ones to rounding. A transformers model calls the attention
that its config names; the ones registered here lay the tokens out as rows of each chunk, call the family's own function on them
and lay the result end to end again; padded rows they leave to that function. Encoders' heads read the first place of a row, so
a hook hands them each pair's first token. Nothing is kept between calls: several threads may score with one model.
On GPUs, in half precision, torch's kernel for rows of several pairs does the same without the chunks (varlen.py).
Which models may be packed: layouts.py. Rejected: copies of the models with another attention, and a mask of the whole row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rankery.data.packing import Chunk, Packing, Rows
from rankery.models.varlen import varlen_attention

# Shapes: N tokens, M places, H heads (of keys and values there may be fewer), D width of a head, B rows of a chunk, T its width.

PREFIX = "packed_"  # of the names of these attention functions
INNER = ("eager", "sdpa")


def packed_options(packing: Packing, input_ids: torch.Tensor, model: Any) -> dict[str, Any]:
    """What a transformers model is given for a packed row [1, N], beside its ids."""
    # A mask of four dimensions is taken as it is: none is made for the row.
    mask = torch.zeros((1, 1, 1, 1), device=packing.position_ids.device)
    pad = counted_without(model)
    positions = packing.position_ids if pad is None else _after_pad(packing.position_ids, input_ids, pad)
    return {"attention_mask": mask, "position_ids": positions, "packing": packing}


def counted_without(model: Any) -> int | None:
    """The id that a model leaves out when it counts positions, which begin after it, as RoBERTa does; None: it counts all tokens."""
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    return getattr(table, "padding_idx", None)


def _after_pad(within: torch.Tensor, input_ids: torch.Tensor, pad: int) -> torch.Tensor:
    """Positions of a packed row as RoBERTa counts them: pad + 1 for a pair's first token that is not the pad id, whose own is pad.

    A text may spell the pad token. `within`: index of each token in its pair, [1, N].
    """
    real = (input_ids != pad).long()
    before = real.cumsum(1) - real
    starts = torch.arange(within.shape[1], device=within.device)[None] - within
    return (before - before.gather(1, starts) + 1) * real + pad


def first_tokens(module: Any, args: Any, options: dict[str, Any], output: Any) -> Any:
    """A forward hook: packed pairs leave the module as rows of one token, their first, [B, 1, width]."""
    packing = options.get("packing")
    if packing is not None:
        states = output.last_hidden_state[0]
        # The last layer may have gone on with the first tokens alone.
        output.last_hidden_state = (states if len(states) == len(packing.first) else states[packing.first])[:, None]
    return output


def spare_last_layer(model: Any) -> None:
    """Has an encoder's last layer go on with the first tokens of packed pairs alone after its attention: a head reads no others.

    What follows the attention is two thirds of a layer, in encoders that are built like BERT.
    """
    layers: Any = getattr(getattr(model.base_model, "encoder", None), "layer", None)
    attention = getattr(layers[-1], "attention", None) if layers else None
    if attention is not None and all(hasattr(layers[-1], part) for part in ("intermediate", "output")):
        attention.register_forward_hook(_cut_to_first, with_kwargs=True)


def _cut_to_first(module: Any, args: Any, options: dict[str, Any], output: tuple[Any, ...]) -> tuple[Any, ...] | None:
    packing = options.get("packing")
    return None if packing is None else (output[0].index_select(1, packing.first), *output[1:])


def sequence_module(model: Any) -> Any:
    """The part of an encoder whose output a pooler or head reads: its stack of layers, else the whole base model."""
    base = model.base_model
    return getattr(base, "encoder", None) or getattr(base, "transformer", None) or base


class _RowsByIndex(torch.autograd.Function):
    """Rows of a matrix by index, and back: each row is taken once at most, so that its gradient is a row by index as well."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, there: torch.Tensor, back: torch.Tensor, empty: torch.Tensor | None
    ) -> Any:
        ctx.save_for_backward(back)
        ctx.empty = empty
        return rows.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (back,) = ctx.saved_tensors
        gradient = gradients[0].index_select(0, back)
        if ctx.empty is not None:
            gradient[ctx.empty] = 0
        return gradient, None, None, None


def _attention(inner: str) -> Callable[..., tuple[torch.Tensor, Any]]:
    def attend(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any,
        packing: Packing | None = None, **options: Any,
    ) -> tuple[torch.Tensor, Any]:  # fmt: skip
        """Attention of [1, H, N, D] within each pair: [1, N, H, D]."""
        own = sys.modules[type(module).__module__].eager_attention_forward if inner == "eager" else None
        function = ALL_ATTENTION_FUNCTIONS.get_interface(inner, own)
        if packing is None:
            return function(module, query, key, value, attention_mask, **options)  # type: ignore[no-any-return]
        causal = bool(getattr(module, "is_causal", False)) and is_causal(module.config)
        options["is_causal"] = causal
        window = options.get("sliding_window")
        if inner == "sdpa":
            out_of_kernel = varlen_attention(query, key, value, packing, causal, window, options)
            if out_of_kernel is not None:
                return out_of_kernel, None
        layout = packing.rows
        split = [chunk.places for chunk in layout.chunks]
        places = [_unpacked(x, layout).split(split) for x in (query, key, value)]
        lengths = [length for _, length in packing.trunks]
        rows_of_chunks = layout.lengths.split([len(chunk.lengths) for chunk in layout.chunks])
        # Cut with split: a slice's gradient is as large as the whole row.
        trunks = [x.split([*lengths, x.shape[2] - sum(lengths)], dim=2) for x in (key, value)]
        out = []
        for number, (chunk, *parts) in enumerate(zip(layout.chunks, *places, strict=True)):
            rows = [x.unflatten(0, (-1, chunk.width)).transpose(1, 2) for x in parts]
            if chunk.trunk is not None:
                before = [trunk[chunk.trunk].expand(len(chunk.lengths), -1, -1, -1) for trunk in trunks]
                rows[1:] = [torch.cat(both, dim=2) for both in zip(before, rows[1:], strict=True)]
            kind = (number, causal, window, query.dtype)
            if kind not in packing.masks:
                seen = lengths[chunk.trunk] if chunk.trunk is not None else 0
                packing.masks[kind] = chunk_mask(
                    chunk, rows_of_chunks[number], seen, causal, window, query.dtype, inner
                )
            out.append(function(module, *rows, packing.masks[kind], **options)[0].flatten(0, 1))
        joined = torch.cat(out)
        tokens = _RowsByIndex.apply(joined.flatten(1), layout.place, layout.token, layout.padding)
        return tokens.view(1, -1, *joined.shape[1:]), None

    return attend


def _unpacked(tokens: torch.Tensor, layout: Rows) -> torch.Tensor:
    """Heads of tokens [1, H, N, D] as places [M, H, D]."""
    _, heads, _, width = tokens.shape
    rows = tokens[0].transpose(0, 1).reshape(-1, heads * width)
    return _RowsByIndex.apply(rows, layout.token, layout.place, None).view(-1, heads, width)


def chunk_mask(
    chunk: Chunk, lengths: torch.Tensor, before: int, causal: bool, window: int | None, dtype: torch.dtype, inner: str
) -> torch.Tensor | None:
    """Which places of a row see which, [B or 1, 1, T, before + T]: bool for torch's function, to be added for plain products; None: all.

    `lengths`: of the rows, where the mask shall be. `before`: tokens of the trunk, which come first among the keys; causal attention alone has one. A padded place sees itself at
    least, so that its (unused) output is a number.
    """
    across = torch.arange(before + chunk.width, device=lengths.device)
    distance = across[before:, None] - across  # [T, before + T] how far back the key is
    windowed = window is not None and window < before + chunk.width
    # Keys in padding come after every real token: where attention is causal, no mask is needed for them.
    padded = not causal and min(chunk.lengths) < chunk.width
    if not windowed and not padded and (not causal or (inner == "sdpa" and not before)):
        return None
    seen = torch.ones_like(distance, dtype=torch.bool)[None, None]
    if causal:
        seen = seen & (distance >= 0)
    if windowed:
        seen = seen & (distance.abs() < window)
    if padded:
        seen = seen & (across < lengths[:, None, None, None]) | (distance == 0)
    if inner == "sdpa":
        return seen
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


def is_causal(config: Any) -> bool:
    """Whether a decoder's tokens see only those before them; a few are made into encoders by their config."""
    config = config.get_text_config()
    return bool(getattr(config, "is_causal", True)) and not getattr(config, "use_bidirectional_attention", False)


for name in INNER:
    ALL_ATTENTION_FUNCTIONS.register(PREFIX + name, _attention(name))
    ALL_MASK_ATTENTION_FUNCTIONS.register(PREFIX + name, ALL_MASK_ATTENTION_FUNCTIONS[name])
