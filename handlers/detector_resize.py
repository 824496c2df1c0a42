"""torchvision's detectors resize a picture alike in eager mode, scripted and traced."""

# No postponed annotations: TorchScript reads them, and not when they are strings.
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.transform import GeneralizedRCNNTransform


class EagerResize(GeneralizedRCNNTransform):
    """torchvision's transform, for pictures without targets and without a fixed size.

    Sides become ``int(side * scale)`` with the scale in double precision, as torchvision computes
    it in eager mode. Scripted and traced it takes float32 (pytorch/vision#3654): a picture of
    640x427 is resized to 799 rows where eager has 800, and every box and score moves.
    """

    @classmethod
    def of(cls, transform: GeneralizedRCNNTransform) -> "EagerResize":
        """One with the settings of torchvision's own."""
        settings = ("min_size", "max_size", "image_mean", "image_std", "size_divisible")
        return cls(*(getattr(transform, name) for name in settings))

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """A picture (C, H, W) with a shorter side of ``min_size``, the longer in ``max_size``."""
        assert target is None, "this transform is for inference alone"
        if torch.jit.is_tracing():
            size = self._traced_size(image)
        else:
            height, width = image.shape[-2:]
            scale = min(self.min_size[-1] / min(height, width), self.max_size / max(height, width))
            # Of a very long picture torchvision's own would leave nothing.
            size = [max(1, int(height * scale)), max(1, int(width * scale))]
        resized = functional.interpolate(image[None], size, mode="bilinear", align_corners=False)
        return resized[0], target

    @torch.jit.unused
    def _traced_size(self, image: Tensor) -> list[int]:
        """The same as tensors, so that the size is no constant of the trace."""
        sides = torch._shape_as_tensor(image)[-2:].double()
        limits = torch.tensor([self.min_size[-1], self.max_size], dtype=torch.float64)
        # A number by a tensor would be its reciprocal times the number, which rounds twice.
        scale = (limits / torch.stack([sides.min(), sides.max()])).min()
        return list((sides * scale).long().clamp(min=1))
