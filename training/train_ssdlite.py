"""Train SSDLite on rendered scenes: `python -m training.train_ssdlite`.

The backbone starts from that of the committed LR-ASPP weights, as far as the two agree.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from training import common, data, heldout
from training.depthwise import accelerate
from training.metrics import mean_average_precision
from training.pictures import random_light
from training.render import LABELS

BACKBONE = Path("weights") / "lraspp_shapes.pth"
SCENES, BATCH = 6000, 16
PHASES = (common.Phase(192, 2400, 2e-3, 0.5), common.Phase(320, 1100, 1e-3, 0.5))

Target = dict[str, Tensor]


def picture(file: bytes) -> Tensor:
    """uint8 [height, width, 3] at the picture's own size."""
    return torch.from_numpy(np.array(data.decode(file)))


def model_input(pixels: Tensor) -> Tensor:
    """float32 [3, height, width] in 0..1; the detector itself resizes and normalises."""
    return (pixels / 255).permute(2, 0, 1)


def start_from(model: nn.Module, weights: Path) -> int:
    """Copy the leading backbone tensors of LR-ASPP weights; returns how many fitted."""
    source = torch.load(weights, weights_only=True)
    trained = [value for name, value in source.items() if name.startswith("backbone.")]
    own = [value for name, value in model.state_dict().items() if name.startswith("backbone.")]
    fitting = [(a, b) for a, b in zip(own, trained, strict=False) if a.shape == b.shape]
    for mine, given in fitting:
        mine.copy_(given)
    return len(fitting)


def random_view(pixels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror or transpose a picture [height, width, 3] and its boxes [n, 4]."""
    mirror, flip, transpose = (torch.rand(3) < 0.5).tolist()
    height, width = pixels.shape[:2]
    if mirror:
        pixels, boxes = pixels.flip(1), boxes[:, [2, 1, 0, 3]]
        boxes = torch.stack([width - boxes[:, 0], boxes[:, 1], width - boxes[:, 2], boxes[:, 3]], 1)
    if flip:
        pixels, boxes = pixels.flip(0), boxes[:, [0, 3, 2, 1]]
        boxes = torch.stack(
            [boxes[:, 0], height - boxes[:, 1], boxes[:, 2], height - boxes[:, 3]], 1
        )
    if transpose:
        pixels, boxes = pixels.transpose(0, 1), boxes[:, [1, 0, 3, 2]]
    return random_light(pixels[None])[0], boxes


@torch.inference_mode()
def judge(model: nn.Module, scenes: list[data.AnnotatedScene]) -> float:
    """mAP at IoU 0.5, each picture given to the detector at its own size."""
    found = [model([model_input(picture(file))])[0] for file, *_ in scenes]
    true = [(torch.from_numpy(boxes), torch.from_numpy(ids)) for _, boxes, ids, _ in scenes]
    return mean_average_precision(found, true, range(1, len(LABELS)))


def main() -> None:
    given = common.options(__doc__, "ssdlite_shapes.pth", minutes=22, resumable=True)
    scenes = data.annotated_scenes("train", SCENES)
    images = [picture(file) for file, *_ in scenes]
    targets = [(torch.from_numpy(boxes), torch.from_numpy(ids)) for _, boxes, ids, _ in scenes]
    batch = common.batches(len(scenes), BATCH)
    model = ssdlite320_mobilenet_v3_large(weights_backbone=None, num_classes=len(LABELS))
    print(f"{start_from(model, BACKBONE)} tensors of the backbone taken from {BACKBONE}")
    accelerate(model.to(memory_format=torch.channels_last))
    # Matching and losses are computed from what the head returns: keep that out of bfloat16.
    model.head.register_forward_hook(
        lambda module, args, heads: {name: value.float() for name, value in heads.items()}
    )

    def loss(step: int) -> Tensor:
        inputs: list[Tensor] = []
        truths: list[Target] = []
        for index in batch(step).tolist():
            boxes, labels = targets[index]
            pixels, boxes = random_view(images[index], boxes)
            inputs.append(model_input(pixels))
            truths.append({"boxes": boxes, "labels": labels})
        with torch.autocast("cpu", torch.bfloat16):
            losses: dict[str, Tensor] = model(inputs, truths)
        return torch.stack(list(losses.values())).sum()

    for phase in common.phases_left(model, PHASES, given):
        model.transform.fixed_size = (phase.side, phase.side)
        common.fit(model, loss, phase.steps, phase.share * given.minutes, phase.learning_rate)
    common.save(model, given.out)
    print(f"validation mAP50 {judge(model, data.annotated_scenes('val', 100)):.4f}")
    print(f"held-out mAP50 {judge(model, heldout.scenes()):.4f}")


if __name__ == "__main__":
    main()
