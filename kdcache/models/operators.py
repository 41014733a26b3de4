"""The operators that a program read from a file may name, and nothing else.

Invariant: a name finds an operator by this list, never by walking attributes from a module, so no
text in a file reaches a function that is not written here. Left out on purpose: what opens files
(aten.from_file), takes memory as it is (empty, as_strided, set_, resize_) or trusts sizes that
nobody checks (the *_unsafe constructors of sparse tensors, nested views of buffers, attention's and
Fourier transforms' own kernels).
as_strided would also read channels-last images in the wrong order.
"""

import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

from kdcache.errors import UsageError

# By base name: every overload, and the in-place form with a trailing underscore.
_NAMES = """
abs acos acosh adaptive_avg_pool1d _adaptive_avg_pool2d adaptive_avg_pool2d adaptive_avg_pool3d
adaptive_max_pool1d adaptive_max_pool2d add addbmm addcdiv addcmul addmm addmv alias all
alpha_dropout amax amin aminmax any arange argmax argmin argsort asin asinh _assert_async
_assert_scalar atan atan2 atanh atleast_1d atleast_2d atleast_3d avg_pool1d avg_pool2d avg_pool3d
baddbmm batch_norm bilinear bitwise_and bitwise_left_shift bitwise_not bitwise_or
bitwise_right_shift bitwise_xor bmm broadcast_tensors broadcast_to cat cdist ceil celu
channel_shuffle chunk clamp clamp_max clamp_min clip clone col2im column_stack concat
constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
_convolution convolution copy cos cosh cosine_similarity cummax cumprod cumsum deg2rad detach diag
diag_embed diagonal diff div divide dot dropout dsplit einsum elu embedding eq erf erfc erfinv exp
exp2 expand expand_as expm1 eye feature_alpha_dropout feature_dropout fft_fft fft_fft2 fft_fftn
fft_fftshift fft_ifft fft_ifft2 fft_ifftn fft_ifftshift fft_irfft fft_irfft2 fft_irfftn fft_rfft
fft_rfft2 fft_rfftn fill flatten flip fliplr flipud float_power floor floor_divide fmax fmin fmod
frac full full_like _fused_rms_norm gather ge gelu glu greater greater_equal group_norm gt
hardshrink hardsigmoid hardswish hardtanh hsplit hstack im2col imag index index_add index_copy
index_fill index_put index_select inner instance_norm is_nonzero isclose isfinite isinf isnan item
kron layer_norm le leaky_relu lerp less less_equal lift lift_fresh lift_fresh_copy
linalg_matrix_norm linalg_norm linalg_vector_norm linear linspace _local_scalar_dense log log10
log1p log2 log_sigmoid _log_softmax log_softmax logaddexp logical_and logical_not logical_or
logical_xor logit logsumexp lt masked_fill masked_scatter masked_select matmul matrix_exp max
max_pool1d max_pool2d max_pool2d_with_indices max_pool3d maximum mean median meshgrid min minimum
mish mm moveaxis movedim mul multiply mv nan_to_num nanmean nansum narrow
_native_batch_norm_legit_no_training native_group_norm native_layer_norm ne neg negative new_full
new_ones new_zeros nonzero norm not_equal numpy_T one_hot ones ones_like outer pad _pad_enum permute
pixel_shuffle pixel_unshuffle positive pow prelu _prelu_kernel prod rad2deg real reciprocal
reflection_pad1d reflection_pad2d relu relu6 remainder repeat repeat_interleave replication_pad1d
replication_pad2d reshape reshape_as resolve_conj resolve_neg rms_norm roll rot90 round rsqrt rsub
scalar_tensor scaled_dot_product_attention scatter scatter_add scatter_reduce select select_scatter
selu sigmoid sign silu sin sinc sinh slice slice_scatter _softmax softmax softplus softshrink sort
split split_with_sizes sqrt square squeeze stack std std_mean sub subtract sum swapaxes swapdims
sym_numel sym_size sym_stride t take take_along_dim tan tanh tensor_split tensordot threshold tile
to _to_copy topk trace transpose tril tril_indices triu triu_indices true_divide trunc type_as
unbind unflatten unfold unsafe_chunk unsafe_split unsafe_split_with_sizes _unsafe_view unsqueeze
upsample_bicubic2d _upsample_bicubic2d_aa upsample_bilinear2d _upsample_bilinear2d_aa
upsample_linear1d upsample_nearest1d upsample_nearest2d _upsample_nearest_exact2d var var_mean vdot
view view_as view_as_complex view_as_real vsplit vstack where xlogy zero zeros zeros_like
"""
ATEN = frozenset(_NAMES.split())

# Checks of what export had assumed, on shapes, dtypes and devices. They are passed over: another
# device and a lower precision are ours to choose, and the shape of images is checked before.
CHECKS = frozenset(
    f"torch.ops.aten.{name}.default"
    for name in ("_assert_tensor_metadata", "sym_constrain_range", "sym_constrain_range_for_size")
)

_ATEN_NAME = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)", re.ASCII)
_LARGEST = 2**63


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return function, without whole numbers of more than 64 bits."""

    def call(*numbers: Any) -> Any:
        found = function(*numbers)
        if isinstance(found, int) and abs(found) >= _LARGEST:
            raise OverflowError(f"a shape's arithmetic gave more than {_LARGEST}")
        return found

    return call


def _choose(condition: bool, yes: Any, no: Any) -> Any:
    return yes if condition else no


# What export says of sizes; they are plain Python numbers here.
SCALARS: dict[str, Callable[..., Any]] = {
    **{
        f"_operator.{name}": _bounded(getattr(operator, name))
        for name in (
            *("eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "and_", "or_"),
            *("mul", "add", "sub", "floordiv", "mod", "truediv"),
        )
    },
    "math.trunc": math.trunc,
    "torch.sym_float": float,
    "torch.sym_int": int,
    "torch.sym_ite": _choose,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_not": operator.not_,
    "torch.sym_sqrt": math.sqrt,
}


def normalise(
    maps: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what aten._native_batch_norm_legit_no_training does, with lengths checked.

    The kernel itself reads past the end of a mean that is too short; batch_norm asks first.
    """
    normalised = torch.ops.aten.batch_norm.default(
        maps, weight, bias, mean, var, False, momentum, eps, False
    )
    nothing = maps.new_zeros(0)
    return normalised, nothing, nothing


def find_aten(target: str) -> "OpOverload[..., Any]":
    """Return the operator of a name such as torch.ops.aten.add.Tensor.

    Raises:
        UsageError: kdcache does not run it, or torch has none of this name.
    """
    match = _ATEN_NAME.fullmatch(target)
    base = match[1] if match else ""
    if match is None or not (base in ATEN or (base.endswith("_") and base[:-1] in ATEN)):
        raise UsageError(
            f"names the operator {target[:100]!r}, which kdcache does not run, since a program may "
            "come from anybody; save what torch.export.export gives, without run_decompositions, "
            "or give the network as package.module:factory"
        )
    packet = getattr(torch.ops.aten, base, None)
    found = getattr(packet, match[2], None) if isinstance(packet, OpOverloadPacket) else None
    if not isinstance(found, OpOverload):
        raise UsageError(
            f"names the operator {target[:100]!r}, which torch {torch.__version__} does not have; "
            "install the torch that wrote the file"
        )
    return found
