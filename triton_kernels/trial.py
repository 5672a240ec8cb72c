"""The smallest kernel: whether Triton works at all."""

import torch
import triton
import triton.language as tl


@triton.jit
def trial_kernel(out):
    """Writes 1 to out, one int32. One program."""
    tl.store(out, 1)


def trial(device: str) -> None:
    """Compiles and runs one kernel on the type of device; raises where that does not work."""
    out = torch.zeros((), dtype=torch.int32, device=device)
    trial_kernel[(1,)](out)
    if out.item() != 1:
        raise RuntimeError("it did not write what it should")
