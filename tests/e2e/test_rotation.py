"""Logs rotate as marsmith/log4j2.xml says, with a size that a test can fill in its place."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from homes import serving

from marsmith import environment

KEPT = 5


def test_five_old_logs_are_kept(
    lenet5: Path,
    digits: dict[str, bytes],
    make_home: Callable[[], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Path(environment.__file__).with_name("log4j2.xml").read_text()
    assert settings.count('size="20 MB"') == 3
    small = tmp_path / "log4j2.xml"
    small.write_text(settings.replace('size="20 MB"', 'size="2 KB"'))
    plain = environment.variables

    def changed(*given: Path) -> dict[str, str | None]:
        return {**plain(*given), "LOG4J_CONFIGURATION_FILE": str(small)}

    monkeypatch.setattr(environment, "variables", changed)
    home = make_home()
    shutil.copy(lenet5, home / "model-store")
    with serving(home) as server, server.client(timeout=30) as client:
        # About 90 bytes each: twice as many as all that is kept.
        for _ in range(2 * (KEPT + 1) * 2048 // 90):
            assert client.predict("lenet5_digits", digits["3"]).status == 200
        # Parts are compressed beside the requests.
        end = time.monotonic() + 120
        while len(list((home / "logs").glob("access_log.*.gz"))) < KEPT:
            assert time.monotonic() < end
            time.sleep(0.1)
    names = {path.name for path in (home / "logs").glob("access_log*")}
    assert names == {"access_log.log", *(f"access_log.{i + 1}.log.gz" for i in range(KEPT))}
