"""Train the small CIFAR-style network on rendered shapes: `python -m training.train_cifar_net`."""

from training.classify import Recipe, train
from training.common import options
from training.networks.cifar_net import Net
from training.shapes import SHAPES

RECIPE = Recipe(resize=36, crop=32, pictures=20000, batch=128, steps=8000)


def main() -> None:
    given = options(__doc__, "cifar_net_shapes.pth", minutes=10)
    train(Net(num_classes=len(SHAPES)), RECIPE, given)


if __name__ == "__main__":
    main()
