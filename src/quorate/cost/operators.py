"""The MACs of one PyTorch operator.

One MAC is one multiplication whose product is added up. Only linear algebra counts; normalisation, activations, pooling, elementwise
arithmetic and embedding look-ups count 0. Counts are dense: zeros in a weight, masks and padded positions are not subtracted.

    matrix product (m, k) × (k, n)         m·k·n
    convolution                            output elements · (in channels / groups) · kernel positions
    transposed convolution                 input elements · (out channels / groups) · kernel positions
    attention, H heads of E (values: V)    H · L_query · L_key · (E + V)
    recurrent layer                        tokens · elements of its weight matrices
    bilinear, y_o = Σ_ij x_i W_oij z_j     out · (in₁ + 1) · in₂

An operator is priced, free or unknown, and only what is listed here, a view or tagged pointwise is free.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Formula = Callable[[Sequence[Any], Any], int]  # (operator's arguments, its output) → MACs


def _product(a: Tensor, b: Tensor) -> int:
    """(…, m, k) × (…, k, n), or × (…, k): every element of `a` meets n elements (one) of `b`."""
    return a.numel() * (b.shape[-1] if b.dim() > 1 else 1)


def _convolution(args: Sequence[Any], out: Any) -> int:
    """Weight (out, in / groups, *kernel): the work of one output element, times the output elements."""
    return int(out.numel() * math.prod(args[1].shape[1:]))


def _transposed(args: Sequence[Any], _: Any) -> int:
    """Weight (in, out / groups, *kernel): the work of one input element, times the input elements."""
    return int(args[0].numel() * math.prod(args[1].shape[1:]))


_CONVOLUTIONS = (_convolution, _transposed)  # by the operator's own flag


def _attention(args: Sequence[Any], out: Any) -> int:
    """Query (…, L, E), key (…, S, E), value (…, S, V) → (…, L, V): L·S·E for the scores, L·S·V for the sum."""
    values = out[0] if isinstance(out, (tuple, list)) else out
    rows = math.prod(values.shape[:-1])
    return int(rows * args[1].shape[-2] * (args[0].shape[-1] + args[2].shape[-1]))


def _recurrent(x: Tensor, weights: Sequence[Tensor]) -> int:
    """Input (…, features), weights: each token meets each weight matrix once; vectors are biases."""
    return math.prod(x.shape[:-1]) * sum(w.numel() for w in weights if w.dim() == 2)


def _trilinear(args: Sequence[Any], _: Any) -> int:
    """Three factors over common dimensions; `expand` names those a factor lacks. What is summed between the first two
    alone is summed first, as PyTorch does; for `nn.Bilinear`: out · in₁ · in₂, then out · in₂."""
    expand, summed = [set(e) for e in args[3:6]], set(args[6])
    sizes: dict[int, int] = {}
    for factor, lacking in zip(args[:3], expand, strict=True):
        own = (d for d in range(factor.dim() + len(lacking)) if d not in lacking)
        sizes.update(zip(own, factor.shape, strict=True))
    first = math.prod(n for d, n in sizes.items() if d not in expand[0] & expand[1])
    second = math.prod(n for d, n in sizes.items() if d not in summed & expand[2])
    return first + second


FORMULAS: dict[str, Formula] = {
    f"aten::{name}": formula
    for names, formula in (
        ("mm bmm mv dot vdot", lambda a, _: _product(a[0], a[1])),
        ("addmm _addmm_activation baddbmm addbmm addmv", lambda a, _: _product(a[1], a[2])),
        ("addr", lambda a, _: a[1].numel() * a[2].numel()),
        ("linear mkldnn_linear", lambda a, _: a[0].numel() * math.prod(a[1].shape[:-1])),
        ("convolution _convolution convolution_overrideable", lambda a, out: _CONVOLUTIONS[a[6]](a, out)),
        ("mkldnn_convolution _conv_depthwise2d conv_depthwise3d _slow_conv2d_forward", _convolution),
        ("slow_conv3d_forward slow_conv_dilated2d slow_conv_dilated3d", _convolution),
        ("cudnn_convolution cudnn_convolution_relu cudnn_convolution_add_relu", _convolution),
        ("miopen_convolution miopen_convolution_relu miopen_convolution_add_relu", _convolution),
        ("miopen_depthwise_convolution", _convolution),
        ("cudnn_convolution_transpose miopen_convolution_transpose", _transposed),
        ("slow_conv_transpose2d slow_conv_transpose3d", _transposed),
        ("affine_grid_generator", lambda a, out: out.numel() * a[0].shape[-1]),
        ("conv_tbc", lambda a, out: out.numel() * math.prod(a[1].shape[:2])),
        ("scaled_dot_product_attention _scaled_dot_product_attention_math", _attention),
        ("_scaled_dot_product_attention_math_for_mps _scaled_dot_product_efficient_attention", _attention),
        ("_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu", _attention),
        ("_scaled_dot_product_cudnn_attention", _attention),
        ("_scaled_dot_product_fused_attention_overrideable", _attention),
        ("_cudnn_rnn miopen_rnn", lambda a, _: _recurrent(a[0], a[1])),
        ("_lstm_mps", lambda a, _: _recurrent(a[0], a[2])),
        ("mkldnn_rnn_layer", lambda a, _: _recurrent(a[0], a[1:3])),
        ("_trilinear", _trilinear),
    )
    for name in names.split()
}

# No multiply-adds by the convention. Beside these: views and their copying twins (…_copy), and whatever is tagged pointwise.
FREE = frozenset(
    f"aten::{name}"
    for names in (
        # reductions, order, search
        "sum nansum mean nanmean prod amax amin max min aminmax _aminmax argmax argmin any all _is_all_true",
        "_is_any_true std std_mean var var_mean norm linalg_vector_norm linalg__powsum renorm dist logsumexp median",
        "nanmedian mode kthvalue count_nonzero trace cumsum cumprod cummax cummin _cummax_helper _cummin_helper",
        "logcumsumexp _logcumsumexp segment_reduce sort topk unique_dim unique_consecutive unique_dim_consecutive",
        "_unique _unique2 searchsorted bucketize isin bincount histc equal is_same_size",
        # normalisation
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional cudnn_batch_norm",
        "_native_batch_norm_legit_no_training _batch_norm_no_update _batch_norm_with_update miopen_batch_norm",
        "_batch_norm_with_update_functional batch_norm_stats batch_norm_elemt batch_norm_gather_stats",
        "batch_norm_gather_stats_with_counts batch_norm_update_stats native_layer_norm native_group_norm",
        "_fused_rms_norm _weight_norm_interface",
        # activations and losses, elementwise parts of recurrent cells
        "softmax _softmax log_softmax _log_softmax _safe_softmax _masked_softmax glu hardswish _prelu_kernel",
        "log_sigmoid_forward rrelu_with_noise _add_relu _masked_scale _thnn_fused_lstm_cell _thnn_fused_gru_cell",
        "mse_loss huber_loss smooth_l1_loss soft_margin_loss binary_cross_entropy nll_loss_forward",
        "nll_loss2d_forward complex polar linalg_cross",
        # pooling, sampling, padding
        "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d",
        "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d",
        "max_pool2d_with_indices max_pool3d_with_indices fractional_max_pool2d fractional_max_pool3d max_unpool2d",
        "max_unpool3d mkldnn_max_pool2d mkldnn_max_pool3d mkldnn_adaptive_avg_pool2d upsample_nearest1d",
        "upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d",
        "_upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d",
        "_upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler_2d grid_sampler_3d cudnn_grid_sampler",
        "_grid_sampler_2d_cpu_fallback constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d",
        "replication_pad1d replication_pad2d replication_pad3d im2col col2im pixel_shuffle pixel_unshuffle",
        "channel_shuffle native_channel_shuffle",
        # moving and picking
        "cat stack _stack _chunk_cat block_diag repeat repeat_interleave roll flip rot90 copy clone _to_copy",
        "_copy_from _copy_from_and_resize lift _lazy_clone _pin_memory _unsafe_view _conj_copy _reshape_from_tensor",
        "squeeze unsqueeze t transpose detach set resize resize_as as_strided unsafe_split",
        "unsafe_split_with_sizes index index_select index_add index_copy index_fill index_put index_reduce",
        "_index_put_impl _unsafe_index _unsafe_index_put _unsafe_masked_index _unsafe_masked_index_put_accumulate",
        "gather scatter scatter_add scatter_reduce take put masked_fill masked_scatter masked_select where nonzero",
        "nonzero_static embedding embedding_renorm _embedding_bag _embedding_bag_forward_only tril triu diag_embed",
        "as_strided_scatter diagonal_scatter select_scatter slice_scatter fill zero _pack_padded_sequence",
        "_local_scalar_dense _assert_async _functional_assert_async _assert_scalar _assert_tensor_metadata",
        # making and drawing
        "empty empty_like empty_strided empty_permuted new_empty new_empty_strided zeros zeros_like new_zeros ones",
        "ones_like new_ones full full_like new_full _efficientzerotensor scalar_tensor arange range linspace",
        "logspace eye tril_indices triu_indices hann_window hamming_window blackman_window bartlett_window",
        "kaiser_window rand rand_like randn randn_like randint randint_like randperm normal",
        "normal_functional uniform random bernoulli binomial poisson multinomial exponential cauchy geometric",
        "log_normal native_dropout _fused_dropout _standard_gamma _sample_dirichlet",
    )
    for name in names.split()
)


def tensors(value: object) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)


def name_of(func: Any) -> str:
    """An operator's name without its overload: "aten::add.Tensor" → "aten::add", and "aten::add_" → "aten::add"."""
    name = str(func.name()).partition(".")[0]
    return name.removesuffix("_") if name.startswith("aten::") else name


@functools.cache
def is_free(func: Any) -> bool:
    """Whether an operator is free by the convention."""
    name = name_of(func)
    namespace, _, base = name.partition("::")
    if func.is_view or name in FREE or namespace == "prim" or (namespace == "aten" and base.endswith("_copy")):
        return True
    packet = getattr(getattr(torch.ops, namespace), base, None)  # in-place and out= forms often lack the tag of their sibling
    overloads = [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]
    return any(torch.Tag.pointwise in overload.tags for overload in [func, *overloads])


def foreign_layout(args: Sequence[Any]) -> str | None:
    """The layout of the first sparse or nested tensor among `args`, to which the dense formulas do not apply."""
    for tensor in tensors(args):
        if tensor.is_nested:
            return "nested"
        if tensor.layout != torch.strided and not tensor.is_mkldnn:
            return str(tensor.layout).removeprefix("torch.")
    return None
