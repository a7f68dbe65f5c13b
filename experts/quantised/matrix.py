"""One quantised matrix as its checkpoint stores it, for a kernel or for dequantisation.

N output width, D input width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from experts.quantised.scheme import BLOCK, Form, Scheme
from experts.tensor_names import Shape


@dataclass(frozen=True)
class QuantisedMatrix:
    """Checked: every tensor has a shape and dtype of `scheme.parts`, every scale is finite.

    Scales are positive, except that NVFP4's E4M3 scales of 16 columns may be 0 (all 16 are).
    """

    scheme: Scheme
    shape: Shape
    codes: Tensor
    scale: Tensor
    global_scale: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        overall = 0 if self.global_scale is None else self.global_scale.nbytes
        return self.codes.nbytes + self.scale.nbytes + overall

    def rows(self, start: int, stop: int) -> QuantisedMatrix:
        """Return rows start … stop-1 as views; `start` is a multiple of `BLOCK`."""
        assert start % BLOCK == 0
        scale = self.scale
        if self.scheme.form is Form.FP8_BLOCK:
            scale = scale[start // BLOCK : -(-stop // BLOCK)]
        elif self.scheme.form is not Form.FP8:
            scale = scale[start:stop]
        shape = (stop - start, self.shape[1])
        return replace(self, shape=shape, codes=self.codes[start:stop], scale=scale)
