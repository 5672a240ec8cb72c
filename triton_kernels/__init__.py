"""Triton kernels of rankreg_ext, installed as ``rankreg_ext.triton_kernels``.

The folder is never importable under its bare name: a widely installed package of Triton's own
project is called ``triton_kernels``, and shadowing it would break its users. Importing this
package does not import Triton; a kernel module does that when it is first needed.

``KERNELS`` names the operations that have a Triton kernel.

Example:
    >>> from rankreg_ext import triton_kernels
    >>> triton_kernels.KERNELS
    ()
"""

if __name__ != "rankreg_ext.triton_kernels":
    raise ImportError(
        f"this is not Triton's own package 'triton_kernels' but a part of rankreg_ext, found on "
        f"the path as {__name__!r}: install rankreg_ext and import it as "
        f"'rankreg_ext.triton_kernels', and keep rankreg_ext's source folder off sys.path if you "
        f"want Triton's package"
    )

KERNELS: tuple[str, ...] = ()
