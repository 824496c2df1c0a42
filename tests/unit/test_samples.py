from __future__ import annotations

from pathlib import Path

import pytest

from marsmith import samples


@pytest.mark.parametrize("count", [1, 3, 8, 9, 10, 15, 16, 100])
def test_samples_are_spread_over_all_pictures(tmp_path: Path, count: int) -> None:
    for number in range(count):
        (tmp_path / f"{number:03}.png").touch()
    found = [int(path.stem) for path in samples.spread(samples.files(tmp_path), 8)]
    assert len(found) == len(set(found)) == min(8, count)
    gaps = {second - first for first, second in zip(found, [*found[1:], count], strict=True)}
    assert max(gaps) - min(gaps) <= 1
    assert found[0] == 0
