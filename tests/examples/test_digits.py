"""examples/digits, from scikit-learn's images to an endpoint; and its way onto a GPU, as far as it goes without one."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

torch = pytest.importorskip("torch", reason="the extra torch is not installed")

HERE = Path(__file__).parents[2] / "examples" / "digits"
Command = Callable[..., subprocess.CompletedProcess[str]]
Digits = tuple[Path, dict[str, Any]]
IMAGES = load_digits().data
SHOWN = load_digits().target


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, drivetrain: Command) -> Iterator[Digits]:
    """The project, run once from nothing to its endpoint, and the run as JSON."""
    project = tmp_path_factory.mktemp("digits") / "digits"
    shutil.copytree(HERE, project, ignore=shutil.ignore_patterns(".drivetrain", "__pycache__"))
    found = drivetrain("run", "--json", directory=project)
    assert found.returncode == 0, found.stderr
    yield project, json.loads(found.stdout)
    drivetrain("deploy", "--stop", directory=project)


@pytest.fixture(scope="module")
def modules() -> Iterator[Callable[[str], ModuleType]]:
    """The example's own modules, under the names that they know each other by, and forgotten afterwards."""
    sys.path.insert(0, str(HERE))
    yield importlib.import_module
    sys.path.remove(str(HERE))
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").parent == HERE:
            del sys.modules[name]


@pytest.fixture(scope="module")
def runner(
    digits: Digits,
    drivetrain: Command,
    modules: Callable[[str], ModuleType],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """The service's runner beside the trained model, set up in this process."""
    out = tmp_path_factory.mktemp("trained")
    assert drivetrain("show", "--files", "train", "-o", str(out), directory=digits[0]).returncode == 0
    module = modules("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MODEL", out / "model" / "data" / "model.pth")
        found = module.Runner()
        found.setup()
    return found


def test_the_network_passes_its_gate_and_answers(digits: Digits, drivetrain: Command) -> None:
    project, run = digits
    stages = {entry["stage"]: entry for entry in run["stages"]}
    assert {entry["state"] for entry in run["stages"]} == {"done"}
    assert stages["evaluate"]["outputs"]["report"]["metadata"]["value"] >= 0.97
    assert stages["train"]["outputs"]["model"]["metadata"]["flavor"] == "pytorch"
    found = drivetrain("predict", "--example", "--json", directory=project)
    assert found.returncode == 0, found.stderr
    output = json.loads(found.stdout)["output"]
    assert output["digit"] in range(10)
    assert 0.5 < output["probability"] <= 1.0


def test_the_endpoint_reads_images_that_it_is_sent(digits: Digits, drivetrain: Command) -> None:
    project, _ = digits
    pixels = json.dumps(IMAGES[3].tolist())
    found = drivetrain("predict", f"pixels={pixels}", "--json", directory=project)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["output"]["digit"] == SHOWN[3]


def test_a_batch_gives_what_each_image_gets_alone(runner: Any) -> None:
    inputs = [{"pixels": image.tolist()} for image in IMAGES[:40]]
    together = runner.batch(inputs)
    alone = [runner.run(**one) for one in inputs]
    assert [answer.digit for answer in together] == [answer.digit for answer in alone]
    assert [answer.probability for answer in together] == pytest.approx(
        [answer.probability for answer in alone], abs=1e-5
    )
    assert np.mean([answer.digit for answer in together] == SHOWN[:40]) > 0.95


def test_tensors_are_taken_whole_flat_or_square(runner: Any) -> None:
    found = runner.infer({"pixels": IMAGES[:40].astype("float32")})
    square = runner.infer({"pixels": IMAGES[:40].reshape(-1, 8, 8)})
    assert found["probabilities"].shape == (40, 10)
    assert (found["probabilities"] == square["probabilities"]).all()
    assert found["digit"].tolist() == [runner.run(image.tolist()).digit for image in IMAGES[:40]]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [([0.0] * 63, "63 values"), ([0.0] * 63 + [16.5], "from 0 to 16"), ([float("nan")] * 64, "from 0 to 16")],
)
def test_what_is_no_image_is_refused(runner: Any, pixels: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        runner.run(pixels)


@pytest.mark.parametrize("tensors", [{"x": np.zeros((2, 64))}, {"pixels": np.zeros((2, 63))}, {"pixels": np.zeros(64)}])
def test_tensors_that_are_no_images_are_refused(runner: Any, tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"one tensor, pixels, of shape \(images, 64\)"):
        runner.infer(tensors)


# The way onto the GPU, with its buffers on the CPU: graphs and pinned memory alone are missing


@pytest.fixture(scope="module")
def network(modules: Callable[[str], ModuleType]) -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(modules("train").convolutional(4, classes=10), torch.nn.Softmax(dim=1)).eval()


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 8, 9, 31, 33, 128, 129, 300])
def test_padded_batches_give_what_the_network_gives(
    modules: Callable[[str], ModuleType], network: Any, rows: int
) -> None:
    fixed = modules("gpu").FixedSizes(network, 64, torch.device("cpu"))
    pixels = IMAGES[:rows].astype("float32")
    fixed(IMAGES[-128:].astype("float32"))  # leaves other images behind in the buffers
    with torch.inference_mode():
        wanted = network(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(fixed(pixels), wanted, atol=1e-6)


def test_an_answer_is_not_overwritten_by_the_next(modules: Callable[[str], ModuleType], network: Any) -> None:
    fixed = modules("gpu").FixedSizes(network, 64, torch.device("cpu"))
    first = fixed(IMAGES[:3].astype("float32"))
    kept = first.copy()
    fixed(IMAGES[3:6].astype("float32"))
    assert (first == kept).all()


@pytest.mark.parametrize(("rows", "size"), [(0, 1), (1, 1), (2, 8), (8, 8), (9, 32), (32, 32), (33, 128), (128, 128)])
def test_rows_go_to_the_next_size(modules: Callable[[str], ModuleType], network: Any, rows: int, size: int) -> None:
    fixed = modules("gpu").FixedSizes(network, 64, torch.device("cpu"))
    assert fixed._place_for(rows).size == size


def test_the_quickest_way_is_taken_as_measured(
    modules: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = modules("gpu")
    now = 0.0
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: now)

    def taking(times: list[float]) -> Callable[[], None]:
        left = iter(times)

        def way() -> None:
            nonlocal now
            now += next(left)

        return way

    slow, quick = taking([2.0] * 5), taking([1.0, 1.0, 1.0, 90.0, 90.0])  # by the median: a hiccup does not decide
    assert gpu.fastest([slow, quick], rounds=5) is quick


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_on_a_gpu_graphs_give_what_the_network_gives(modules: Callable[[str], ModuleType], network: Any) -> None:
    gpu, device = modules("gpu"), torch.device("cuda")
    moved = torch.nn.Sequential(*network).to(device)
    pixels = IMAGES[:300].astype("float32")
    with torch.inference_mode():
        wanted = moved(torch.from_numpy(pixels).to(device)).cpu().numpy()
    np.testing.assert_allclose(gpu.FixedSizes(moved, 64, device)(pixels), wanted, atol=1e-4)
    inputs = torch.from_numpy(pixels[:8]).to(device)
    replay = gpu.captured(lambda: moved(inputs))
    inputs.copy_(torch.from_numpy(pixels[8:16]))
    np.testing.assert_allclose(replay().cpu().numpy(), wanted[8:16], atol=1e-4)
