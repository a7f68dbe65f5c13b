"""Quantises a matrix by the plainest rule of each form: nearest code under the largest weight.

Single IEEE operations only, so that every machine writes the same bytes. N output width, D input
width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from experts.quantised.nvfp4 import GROUP_SIZE
from experts.quantised.scheme import BLOCK, Form, Role, Scheme

_E4M3_MAX = 448.0
_E2M1_MAX = 6.0
_INT4_HALF_RANGE = 7.5
_SCALE_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F8_E8M0": torch.float8_e8m0fnu,
}


def quantise(weight_ND: Tensor, scheme: Scheme, scale_dtype: str) -> Mapping[Role, Tensor]:
    """Return what is stored for a float32 matrix.

    `scale_dtype` (``F32``, ``BF16``, ``F8_E8M0``) is that of the scales; NVFP4's have their own.
    """
    match scheme.form:
        case Form.FP8 | Form.FP8_DYNAMIC | Form.FP8_BLOCK:
            return _fp8(weight_ND, scheme.form, scale_dtype)
        case Form.W4A16:
            return _int4(weight_ND, scheme.group_size, scale_dtype)
        case Form.NVFP4 | Form.NVFP4_MODELOPT:
            return _nvfp4(weight_ND, divides=scheme.form is Form.NVFP4)


def _fp8(weight_ND: Tensor, form: Form, scale_dtype: str) -> Mapping[Role, Tensor]:
    rows, columns = weight_ND.shape
    if form is Form.FP8:
        largest = weight_ND.abs().amax().view(1)
    elif form is Form.FP8_DYNAMIC:
        largest = weight_ND.abs().amax(dim=1, keepdim=True)
    else:
        largest = _largest_of_blocks(weight_ND)
    scale = _stored_scale(largest / _E4M3_MAX, scale_dtype)
    spread = scale.float()
    if form is Form.FP8_BLOCK:
        spread = spread.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    codes = (weight_ND / spread).clamp(-_E4M3_MAX, _E4M3_MAX).to(torch.float8_e4m3fn)
    return {Role.CODES: codes, Role.SCALE: scale}


def _largest_of_blocks(weight_ND: Tensor) -> Tensor:
    rows, columns = weight_ND.shape
    padded = torch.zeros(-(-rows // BLOCK) * BLOCK, -(-columns // BLOCK) * BLOCK)
    padded[:rows, :columns] = weight_ND.abs()
    blocks = padded.view(-(-rows // BLOCK), BLOCK, -(-columns // BLOCK), BLOCK)
    return blocks.amax(dim=(1, 3))


def _stored_scale(scale: Tensor, dtype: str) -> Tensor:
    """Round the scale to its stored dtype; a power of two is rounded up, so that nothing clips."""
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    if dtype == "F8_E8M0":
        mantissa, exponent = torch.frexp(scale)
        scale = torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).int())
    return scale.to(_SCALE_DTYPES[dtype])


def _int4(weight_ND: Tensor, group_size: int, scale_dtype: str) -> Mapping[Role, Tensor]:
    rows, columns = weight_ND.shape
    groups = weight_ND.view(rows, -1, group_size)
    scale = _stored_scale(groups.abs().amax(dim=-1) / _INT4_HALF_RANGE, scale_dtype)
    levels = torch.round(groups / scale.float().unsqueeze(-1)).clamp(-8, 7).long() + 8
    shifts = torch.arange(0, 32, 4)
    words = (levels.view(rows, columns // 8, 8) << shifts).sum(dim=-1)
    return {
        Role.CODES: words.to(torch.int32),
        Role.SCALE: scale,
    }


def _nvfp4(weight_ND: Tensor, divides: bool) -> Mapping[Role, Tensor]:
    rows = weight_ND.shape[0]
    groups = weight_ND.view(rows, -1, GROUP_SIZE)
    largest = groups.abs().amax(dim=-1) / _E2M1_MAX
    overall = (weight_ND.abs().amax() / (_E2M1_MAX * _E4M3_MAX)).view(1)
    overall = torch.where(overall > 0, overall, torch.ones_like(overall))
    if divides:
        overall = 1 / overall
    scale = (largest * overall if divides else largest / overall).clamp(max=_E4M3_MAX)
    scale = scale.to(torch.float8_e4m3fn)
    effective = scale.float() / overall if divides else scale.float() * overall
    # A scale that underflowed to 0 makes every weight of its group 0, whatever the codes.
    effective = torch.where(effective > 0, effective, torch.full_like(effective, torch.inf))
    codes = _e2m1_codes(groups / effective.unsqueeze(-1)).view(rows, -1, 2)
    packed = codes[..., 0] | (codes[..., 1] << 4)
    return {
        Role.CODES: packed.to(torch.uint8),
        Role.SCALE: scale,
        Role.GLOBAL_SCALE: overall,
    }


def _e2m1_codes(values: Tensor) -> Tensor:
    """Return nearest codes 0 to 15; halfway between two, the even one."""
    size = values.abs()
    upward, downward = (0.75, 1.75, 3.5), (0.25, 1.25, 2.5, 5.0)
    code = torch.zeros(size.shape, dtype=torch.int32)
    for edge in upward:
        code += size >= edge
    for edge in downward:
        code += size > edge
    return code | (torch.signbit(values).int() << 3)
