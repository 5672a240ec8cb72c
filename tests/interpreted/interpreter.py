"""Triton's interpreter, put right where it computes otherwise than every device.

It truncates float32 to bfloat16, where devices round to nearest even, and loses bfloat16's
subnormals. (Triton 3.6 to 3.9.)
"""

import torch
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, _get_np_dtype, tl

_cast = InterpreterBuilder.cast_impl


def _exact_cast(self, src, dst_type):
    types = (src.dtype.scalar, dst_type.scalar)
    if types == (tl.bfloat16, tl.float32):  # bfloat16 is kept as 16 bits
        data = (src.data.astype("uint32") << 16).view("float32")
    elif types == (tl.float32, tl.bfloat16):
        rounded = torch.from_numpy(src.data.astype("float32")).to(torch.bfloat16)
        data = rounded.view(torch.int16).numpy().view(_get_np_dtype(dst_type))
    else:
        return _cast(self, src, dst_type)
    return TensorHandle(data, dst_type.scalar)


InterpreterBuilder.cast_impl = _exact_cast
