from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from handlers.bundle import Bundle
from handlers.inputs import ImageInput
from handlers.pictures import Picture
from handlers.tasks.image_classification import ImageClassification

# Few different ones, so that many are equal.
SCORES = st.lists(st.sampled_from([0.0, 1e-6, 0.2, 0.5, 1.0]), min_size=1, max_size=30)


@given(scores=SCORES, count=st.integers(1, 40))
def test_the_best_come_first_and_of_equal_ones_the_first(scores: list[float], count: int) -> None:
    task = ImageClassification()
    labels = [f"label {index}" for index in range(len(scores))]
    task.bundle = Bundle("m", "1", "image-classification", "eager", "a", labels, ImageInput())
    picture = Picture.of(Image.new("RGB", (8, 8)))
    outputs = (np.array(scores, np.float32),)
    answer = task.postprocess(outputs, picture, {"top_k": count})
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[:count]
    assert [each["label"] for each in answer] == [labels[index] for index in best]
    np.testing.assert_allclose([each["score"] for each in answer], [scores[i] for i in best])
