"""Where the models run."""

import torch

__all__ = ["best_device"]


def best_device() -> str:
    """"cuda" if there is a GPU, else "cpu".

    On a GPU, convolutions are held to float32: cuDNN would otherwise round their inputs to TF32's ten bits, about three decimal digits.
    What runs under autocast (bfloat16) keeps its speed.

    >>> best_device() in ("cpu", "cuda")
    True
    """
    if not torch.cuda.is_available():
        return "cpu"
    torch.backends.cudnn.allow_tf32 = False
    return "cuda"
