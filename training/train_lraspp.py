"""Train LR-ASPP on rendered scenes: `python -m training.train_lraspp`."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from training import common, data, heldout, pictures
from training.depthwise import accelerate
from training.metrics import Map, mean_iou
from training.render import LABELS

SHORT = 192
SCENES, BATCH = 6000, 16
PHASES = (common.Phase(96, 2400, 2e-3, 0.5), common.Phase(SHORT, 1000, 1e-3, 0.5))


def example(scene: data.AnnotatedScene) -> Tensor:
    """RGB and class ids at the training size: uint8 [height, width, 4]."""
    file, _, _, semantic = scene
    image = pictures.resize_short(data.decode(file), SHORT)
    ids = Image.fromarray(semantic).resize(image.size, Image.Resampling.NEAREST)
    return torch.from_numpy(np.dstack([np.asarray(image), np.asarray(ids)]))


def random_square(picture: Tensor) -> Tensor:
    """A random square of the short side: uint8 [side, side, 4]."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top = int(torch.randint(height - side + 1, ()))
    left = int(torch.randint(width - side + 1, ()))
    return picture[top : top + side, left : left + side]


@torch.inference_mode()
def answers(model: nn.Module, scenes: list[data.AnnotatedScene]) -> Iterator[tuple[Map, Map]]:
    """Predicted and true map of each scene, at the picture's own size."""
    for file, _, _, semantic in scenes:
        pixels = np.array(pictures.resize_short(data.decode(file), SHORT))
        logits = model(pictures.normalised(torch.from_numpy(pixels)[None]))["out"]
        ids = Image.fromarray(logits[0].argmax(0).numpy().astype(np.uint8))
        own_size = semantic.shape[1], semantic.shape[0]
        yield np.asarray(ids.resize(own_size, Image.Resampling.NEAREST)), semantic


def main() -> None:
    given = common.options(__doc__, "lraspp_shapes.pth", minutes=22, resumable=True)
    examples = [example(scene) for scene in data.annotated_scenes("train", SCENES)]
    batch = common.batches(len(examples), BATCH)
    model = lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=len(LABELS))
    accelerate(model.to(memory_format=torch.channels_last))

    def loss(step: int, side: int) -> Tensor:
        squares = torch.stack([random_square(examples[index]) for index in batch(step).tolist()])
        squares = pictures.random_symmetry(squares)
        inputs = pictures.normalised(pictures.random_light(squares[..., :3]))
        inputs = functional.interpolate(inputs, (side, side), mode="bilinear", antialias=True)
        ids = functional.interpolate(squares[..., 3][:, None].float(), (side, side))[:, 0].long()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(inputs)["out"]
        return functional.cross_entropy(logits.float(), ids)

    for phase in common.phases_left(model, PHASES, given):
        at_this_side = partial(loss, side=phase.side)
        common.fit(
            model, at_this_side, phase.steps, phase.share * given.minutes, phase.learning_rate
        )
    common.save(model, given.out)
    validation = answers(model, data.annotated_scenes("val", 100))
    print(f"validation mean IoU {mean_iou(validation, len(LABELS)):.4f}")
    print(f"held-out mean IoU {mean_iou(answers(model, heldout.scenes()), len(LABELS)):.4f}")


if __name__ == "__main__":
    main()
