"""Whose fault it is that `infer` raises: the caller's where the runner says so, the model's otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from drivetrain.backends.serving.replica.calls import Call, Wire
from tests.backends.serving.conftest import RUNNERS
from tests.backends.serving.pools import Asked, carried_out, started

Bundle = Callable[[str], Path]


def test_a_library_that_does_not_take_what_it_is_given_is_a_failure_with_its_traceback_in_the_log(
    bundle: Bundle, capfd: pytest.CaptureFixture[str]
) -> None:
    checks = "if tensors['rows'][0] < 0:\n            raise ValueError('rows are positive')\n        float('three')"
    place = bundle("from base import Runner as Base\n\nclass Runner(Base):\n    pass\n")
    (place / "base.py").write_text(RUNNERS["infer"].replace("return {name", f"{checks}\n        return {{name"))

    def body(value: float) -> bytes:
        return json.dumps({"inputs": [{"name": "rows", "shape": [1], "datatype": "FP64", "data": [value]}]}).encode()

    async def scenario() -> None:
        async with started(place) as pool:
            for value, status, words in ((-1, 400, "rows are positive"), (1, 500, "ValueError: could not convert")):
                asked = Asked(pool)
                pool.submit(Call(Wire.V2, body(value)), asked.done)
                assert (await asked.answer()).status == status
                assert words in (await asked.body())["error"]

    carried_out(scenario())
    logged = capfd.readouterr().err
    assert "could not convert string to float: 'three'" in logged
    assert logged.count("Traceback") == 1
