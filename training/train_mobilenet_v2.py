"""Train MobileNetV2 on rendered shapes: `python -m training.train_mobilenet_v2`."""

from torchvision.models import mobilenet_v2

from training.classify import Recipe, train
from training.common import options
from training.shapes import SHAPES

RECIPE = Recipe(resize=136, crop=128, pictures=16000, batch=64, steps=1750)


def main() -> None:
    given = options(__doc__, "mobilenet_v2_shapes.pth", minutes=25)
    train(mobilenet_v2(num_classes=len(SHAPES)), RECIPE, given)


if __name__ == "__main__":
    main()
