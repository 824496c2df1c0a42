"""Where a worker runs, and with how many threads."""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Sequence

from handlers import cores, torch_on_demand
from handlers.bundle import Limits
from handlers.errors import RuntimeUnavailable

logger = logging.getLogger(__name__)

# What a spec's serving.device calls the kinds of device that a runtime runs on.
KINDS = {"cpu": "cpu", "gpu": "cuda"}
# In the place of TorchServe's ``gpu_id``, where no TorchServe says one: the first GPU there is.
FIRST = -1


def choose(wanted: str, gpu_id: int | None, able: Sequence[str], by_torch: bool = True) -> str:
    """The torch device of this worker: TorchServe gives each worker its ``gpu_id``.

    It may be None, for none, or ``FIRST``. ``wanted`` is cpu, gpu or auto, ``able`` the kinds that
    the runtime runs on, ``by_torch`` whether PyTorch computes there. Where there is no device that
    is both, RuntimeUnavailable is raised.
    """
    if gpu_id == FIRST:
        gpu_id = 0 if "cuda" in able and _available(by_torch) else None
    if wanted != "auto" and KINDS[wanted] not in able:
        raise RuntimeUnavailable(
            f"the model's spec says serving.device: {wanted}, and its runtime runs on "
            f"{' and '.join(able)} alone: build it with serving.device: auto"
        )
    if wanted == "cpu":
        return "cpu"
    if "cuda" not in able:
        if gpu_id is not None:
            logger.warning(
                "marsmith: warning: GPU %s is left idle, for this model's runtime runs on the CPU "
                "alone: build it with --runtime torchscript or torch-compile, or say "
                "serving.device: cpu",
                gpu_id,
            )
        return "cpu"
    given = "gave it none" if gpu_id is None else f"gave it GPU {gpu_id}"
    if gpu_id is None and (wanted == "gpu" or "cpu" not in able):
        # A build has no TorchServe to give it one.
        gpu_id = 0
    if gpu_id is not None and _available(by_torch):
        return f"cuda:{gpu_id}"
    if wanted == "gpu" or "cpu" not in able:
        who = "the model's spec demands" if wanted == "gpu" else "the model's runtime needs"
        raise RuntimeUnavailable(
            f"{who} a GPU (serving.device: {wanted}) and this process has none "
            f"(TorchServe {given}, and no GPU can be used here): "
            "take a host with an NVIDIA driver, for PyTorch's runtimes a torch that was built for "
            "CUDA, or build it "
            + ("with serving.device: auto" if "cpu" in able else "with another runtime")
        )
    if gpu_id is not None:
        logger.warning(
            "marsmith: warning: GPU %s is left idle and the model runs on the CPU, for no GPU can "
            "be used here: look at the NVIDIA driver, and for PyTorch's runtimes at the build of "
            "torch",
            gpu_id,
        )
    return "cpu"


def of_torch(place: str) -> str:
    """Where PyTorch computes its part of a model whose engine runs at ``place``: there, too, but
    for a torch that can use no GPU, as beside another engine it may be."""
    if place == "cpu" or _available(by_torch=True):
        return place
    logger.warning(
        "marsmith: warning: what PyTorch computes of this model runs on the CPU, for this torch "
        "can use no GPU: install one that was built for CUDA"
    )
    return "cpu"


def is_lost(place: str) -> bool:
    """Whether the GPU at ``place`` computes nothing any more for this process: an error such as an
    illegal access stays in its context, and every later call fails."""
    loaded = sys.modules.get("torch")
    if not place.startswith("cuda") or loaded is None or torch_on_demand.stands_in(loaded):
        return False
    import torch

    if not torch.cuda.is_initialized():
        # It computes nothing there, and may not be able to: another engine does.
        return False
    try:
        torch.cuda.synchronize(place)
    except RuntimeError:
        return True
    return False


def _available(by_torch: bool) -> bool:
    """Whether there is a GPU for what computes: for torch, or else by the driver.

    Other runtimes may have no torch here, and it would cost their workers half a gigabyte. Whether
    it happens to be loaded decides nothing: in a build it is, in a worker not.
    """
    if by_torch:
        return bool(torch_on_demand.package().cuda.is_available())
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    # Both return 0 where all is well.
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return not failed and count.value > 0


def exact(device: str) -> None:
    """Compute float32 as float32 on a GPU: cuDNN's default is TF32, which has 10 bits.

    The limits of parity and of golden requests are those of float32. Runtimes that compute without
    torch see to it themselves.
    """
    if device != "cpu" and torch_on_demand.loaded():
        torch = torch_on_demand.package()
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def threads(limits: Limits) -> int:
    """Native threads of one worker: as the spec says, or an equal share of the cores there are."""
    return limits.threads or max(1, cores.usable() // limits.workers)
