"""Operations as users write them, and what to write instead where arrays are cut."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

_NAMES = {
    "_softmax": "softmax",
    "_safe_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "_to_copy": "to",
    "_unsafe_view": "view",
    "_reshape_alias": "reshape",
    "constant_pad_nd": "pad",
    "native_group_norm": "group_norm",
    "native_layer_norm": "layer_norm",
    "_fused_rms_norm": "rms_norm",
    "native_dropout": "dropout",
    "bernoulli": "dropout, or bernoulli",
    "linalg_vector_norm": "norm",
    "im2col": "unfold",
    "col2im": "fold",
    "grid_sampler_2d": "grid_sample",
    "grid_sampler_3d": "grid_sample",
    "linalg_matrix_norm": "norm",
    "sub": "-",
    "add": "+",
    "mul": "*",
    "div": "/",
    "_prelu_kernel": "prelu",
    "index": "indexing",
    "slice": "slicing",
    "select": "indexing",
    "_local_scalar_dense": "item",
    "mm": "matmul",
    "bmm": "matmul",
    "addmm": "linear",
    "baddbmm": "matmul",
    "mv": "matmul",
    "dot": "matmul",
}
_PATTERNS = (
    (r"_?upsample_.*", "interpolate"),
    (r"(reflection|replication)_pad\dd", "pad"),
    (r"_pad_circular", "pad"),
    (r"(_?native_batch_norm|cudnn_batch_norm|miopen_batch_norm|_batch_norm_with_update).*",
     "batch_norm"),
    (r"_scaled_dot_product_.*", "scaled_dot_product_attention"),
    (r"_?(adaptive_avg_pool\dd)", r"\1"),
    (r"(max_pool\dd|adaptive_max_pool\dd)(_with_indices)?", r"\1"),
    (r"slow_conv_transpose(\d)d", r"conv_transpose\1d"),
    (r"_?slow_conv(_dilated)?(\d)d(_forward)?", r"conv\2d"),
)  # fmt: skip
_LAYERS = {
    "interpolate": "make it an nn.Upsample",
    "batch_norm": "make it an nn.BatchNorm{n}d",
    "group_norm": "make it an nn.GroupNorm",
    "layer_norm": "make it an nn.LayerNorm over dims that are not cut",
    "pixel_shuffle": "make it an nn.PixelShuffle",
    "pixel_unshuffle": "make it an nn.PixelUnshuffle",
    "native_channel_shuffle": "make it an nn.ChannelShuffle",
    "softmax": "make it an nn.Softmax",
    "log_softmax": "make it an nn.LogSoftmax",
    "mean": "use nn.AdaptiveAvgPool{n}d(1)",
    "amax": "use nn.AdaptiveMaxPool{n}d(1)",
    "max": "use nn.AdaptiveMaxPool{n}d(1)",
    "view": "use nn.Flatten",
    "reshape": "use nn.Flatten",
}


@lru_cache(maxsize=4096)
def user_name(packet: str, dims: int = 0, transposed: bool = False) -> str:
    """Return what a user calls the aten operation ``packet``, on an input of ``dims`` dims."""
    if packet in ("convolution", "_convolution", "convolution_overrideable"):
        return f"conv{'_transpose' if transposed else ''}{max(1, dims - 2)}d"
    name = packet.rstrip("_") if not packet.endswith("__") else packet
    if name in _NAMES:
        return _NAMES[name]
    for pattern, replacement in _PATTERNS:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def advice_for(name: str, dims: int, concerned: Sequence[int] = ()) -> str:
    """Return what to write instead of ``name`` on an array of ``dims`` dims; "" if there is none.

    ``concerned`` are the dims that it mixes: pooling helps only with all after the channels.
    """
    n = dims - 2
    if name in ("mean", "amax", "max") and (n < 1 or sorted(concerned) != list(range(2, dims))):
        return ""
    if name == "batch_norm" and not 1 <= n <= 3:
        n = 1
    if name == "pad":
        return f"make it an nn.ZeroPad{max(1, n)}d or another of torch's padding layers"
    if match := re.fullmatch(r"(conv|conv_transpose|max_pool|avg_pool|adaptive_(?:avg|max)_pool)"
                             r"(\d)d", name):  # fmt: skip
        kind = match[1].title().replace("_", "")
        return f"make it an nn.{kind}{match[2]}d"
    return _LAYERS.get(name, "").format(n=n)
