"""Triton kernels of rankreg_ext, installed as ``rankreg_ext.triton_kernels``.

The folder is never importable under its bare name: a widely installed package of Triton's own
project is called ``triton_kernels``, and shadowing it would break its users. Importing this
package does not import Triton; a kernel module does that when it is first needed.

``KERNELS`` names the ops that have Triton kernels, each with its module and function there.

Example:
    >>> from rankreg_ext import triton_kernels
    >>> sorted(triton_kernels.KERNELS)[:2]
    ['blackbox_rank', 'blackbox_rank_backward']
"""

if __name__ != "rankreg_ext.triton_kernels":
    raise ImportError(
        f"this is not Triton's own package 'triton_kernels' but a part of rankreg_ext, found on "
        f"the path as {__name__!r}: install rankreg_ext and import it as "
        f"'rankreg_ext.triton_kernels', and keep rankreg_ext's source folder off sys.path if you "
        f"want Triton's package"
    )

KERNELS = {
    "rank": ("rank", "rank"),
    "blackbox_rank": ("rank", "blackbox_rank"),
    "blackbox_rank_backward": ("rank", "blackbox_rank_backward"),
    "positive_ranks": ("positive_ranks", "positive_ranks"),
    "positive_ranks_backward": ("positive_ranks", "positive_ranks_backward"),
    "rankreg_loss": ("rankreg_loss", "rankreg_loss"),
    "rankreg_loss_backward": ("rankreg_loss", "rankreg_loss_backward"),
    "hinge_violations": ("hinge_violations", "hinge_violations"),
    "hinge_violations_backward": ("hinge_violations", "hinge_violations_backward"),
}


def try_out(device: str) -> str | None:
    """Why no kernel can be run on this type of device; None if one was compiled and run.

    Triton is often installed where it cannot work: without a C compiler, or with an older GPU.
    """
    from threading import Thread

    reasons = []

    def run():
        try:
            from .trial import trial

            trial(device)
        except Exception as error:
            reasons.append(f"{type(error).__name__}: {error}".splitlines()[0])

    # Not in this thread, which may be within torch.compile, and then makes no real tensors.
    thread = Thread(target=run)
    thread.start()
    thread.join()
    return f"a kernel cannot be run: {reasons[0]}" if reasons else None
