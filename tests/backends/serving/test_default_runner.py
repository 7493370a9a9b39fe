"""The runner that is copied into bundles: rows, batches and tensors in, the gate's own answers out."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from drivetrain.backends.serving.replica.calls import Call, Wire
from drivetrain.engines import metrics
from tests.backends.serving.pools import Asked, carried_out, started

SOURCE = Path(str(files("drivetrain.backends.serving").joinpath("default_runner.py")))
ROWS = pd.DataFrame(
    {
        "distance": [100.0, 200.0, 3000.0, 2500.0] * 20,
        "carrier": ["AA", "UA", "AA", "DL"] * 20,
        "wind": [1.0, None, 3.5, 2.0] * 20,
    }
)
LATE = pd.Series([0, 0, 1, 1] * 20)
NUMBERS = ROWS[["distance", "wind"]]
Make = Callable[..., Any]


def module_of(place: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("default_runner_under_test", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RULES = module_of(SOURCE)


def lay_out(place: Path, model: Any, features: pd.DataFrame, classes: list[Any] | None, flavor: str) -> None:
    """A bundle's `run.py` and `model/`, as the stages train and deploy leave them."""
    home = place / "model"
    (home / "data").mkdir(parents=True)
    (place / "run.py").write_bytes(SOURCE.read_bytes())
    told = {"features": list(features.columns), "classes": classes, "flavor": flavor}
    (home / "drivetrain.json").write_text(json.dumps(told))
    shown = json.loads(features.head(4).to_json(orient="split"))
    del shown["index"]
    (home / "input_example.json").write_text(json.dumps(shown if flavor == "sklearn" else shown["data"]))
    if flavor == "sklearn":
        (home / "model.pkl").write_bytes(cloudpickle.dumps(model))
    elif flavor == "pytorch":
        import torch

        torch.save(model, home / "data" / "model.pth")
    else:
        model.save(home / "data" / "model.keras")


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def call(model: Any, features: pd.DataFrame, classes: list[Any] | None, flavor: str = "sklearn") -> Any:
        lay_out(tmp_path, model, features, classes, flavor)
        runner = module_of(tmp_path / "run.py").Runner()
        runner.setup()
        return runner

    return call


def classifier(labels: Any = LATE) -> Any:
    encode = make_column_transformer(
        (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan), ["carrier"]), remainder="passthrough"
    )
    trees = HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=2, random_state=0)
    return make_pipeline(encode, trees).fit(ROWS, labels)


RECORDS = [
    {"wind": 1.0, "distance": 100.0, "carrier": "AA"},
    {"wind": None, "distance": 3000.0, "carrier": "XX"},
    {"wind": 2.0, "distance": 2500, "carrier": "DL", "unasked": 1},
]


# One row and many


def test_rows_are_predicted_as_the_model_does_itself(make: Make) -> None:
    model = classifier()
    found = make(model, ROWS, [0, 1]).run(RECORDS)
    frame = pd.DataFrame(RECORDS)[list(ROWS.columns)].astype({"wind": float, "distance": float})
    wanted = model.predict_proba(frame)
    assert [row["probabilities"] for row in found] == [{"0": p, "1": q} for p, q in wanted.tolist()]
    assert [row["prediction"] for row in found] == model.predict(frame).tolist()


def test_a_column_of_which_nothing_is_known_stays_one_of_numbers(make: Make) -> None:
    runner = make(classifier(), ROWS, [0, 1])
    assert runner.table([{**RECORDS[1], "wind": None}])["wind"].dtype == "float64"
    assert len(runner.run([{**RECORDS[1], "wind": None, "distance": None}])) == 1


@pytest.mark.parametrize("sizes", [[1], [1, 1, 1], [3, 0, 2], [0], [2, 1, 0, 3]])
def test_a_batch_gives_each_caller_what_it_would_get_alone(make: Make, sizes: list[int]) -> None:
    runner = make(classifier(), ROWS, [0, 1])
    inputs = [{"rows": [RECORDS[(number + place) % 3] for place in range(size)]} for number, size in enumerate(sizes)]
    assert runner.batch(inputs) == [runner.run(one["rows"]) for one in inputs]


def test_a_row_that_lacks_a_feature_is_refused_by_its_number(make: Make) -> None:
    runner = make(classifier(), ROWS, [0, 1])
    with pytest.raises(ValueError, match="row 1 lacks carrier, wind"):
        runner.run([RECORDS[0], {"distance": 1}])


@pytest.mark.parametrize("features", [ROWS, NUMBERS], ids=["mixed", "numbers"])
def test_a_text_in_the_place_of_a_number_is_refused_by_the_columns_name(make: Make, features: pd.DataFrame) -> None:
    model = classifier() if "carrier" in features else HistGradientBoostingRegressor().fit(features, LATE)
    runner = make(model, features, [0, 1] if "carrier" in features else None)
    with pytest.raises(ValueError, match="distance has to be a number"):
        runner.run([{**RECORDS[0], "distance": "far"}])


# The gate's rule


@given(
    st.integers(2, 4).flatmap(
        lambda classes: st.lists(
            st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=classes, max_size=classes), min_size=1
        )
    )
)
@example([[0.5, 0.5]])
def test_the_prediction_is_the_class_that_the_gate_would_count(probabilities: list[list[float]]) -> None:
    values = np.array(probabilities)
    assert RULES.likeliest(values).tolist() == metrics.likeliest(values).tolist()


def test_a_probability_of_one_half_is_the_second_class(make: Make) -> None:
    torch = pytest.importorskip("torch")
    network = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Sigmoid())
    torch.nn.init.zeros_(network[0].weight)
    torch.nn.init.zeros_(network[0].bias)
    runner = make(network, NUMBERS, ["no", "yes"], "pytorch")
    assert runner.run(RECORDS[:1]) == [{"prediction": "yes", "probabilities": {"no": 0.5, "yes": 0.5}}]
    assert runner.infer({"x": np.zeros((1, 2))})["prediction"].tolist() == ["yes"]


# Tensors


def test_tensors_are_one_matrix_or_a_column_for_each_feature(make: Make) -> None:
    model = HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=2).fit(NUMBERS, LATE)
    runner = make(model, NUMBERS, [0, 1])
    rows = NUMBERS.head(5).to_dict("records")
    rows = [{name: None if np.isnan(value) else value for name, value in row.items()} for row in rows]
    wanted = [[row["probabilities"]["0"], row["probabilities"]["1"]] for row in runner.run(rows)]
    matrix = NUMBERS.head(5).to_numpy()
    whole = runner.infer({"anything": matrix})
    apart = runner.infer({"wind": matrix[:, 1], "distance": matrix[:, :1]})
    for found in (whole, apart, runner.infer({"one": matrix.reshape(5, 1, 2)})):
        assert found["probabilities"].tolist() == wanted
        assert found["prediction"].tolist() == [row["prediction"] for row in runner.run(rows)]
    assert whole["prediction"].dtype == np.int64


def test_features_that_are_text_come_as_tensors_of_their_own(make: Make) -> None:
    runner = make(classifier(LATE.map({0: "on time", 1: "late"})), ROWS, ["late", "on time"])
    carriers = np.array([b"AA", b"XX", b"DL"], dtype=object)
    found = runner.infer(
        {"carrier": carriers, "wind": np.array([1.0, np.nan, 2.0]), "distance": np.array([100, 3000, 2500])}
    )
    wanted = runner.run(RECORDS)
    assert found["prediction"].dtype == object
    assert found["prediction"].tolist() == [row["prediction"] for row in wanted]
    assert found["probabilities"].tolist() == [list(row["probabilities"].values()) for row in wanted]
    with pytest.raises(ValueError, match=r"not every feature is a number \(carrier\)"):
        runner.infer({"x": np.zeros((1, 3))})
    with pytest.raises(ValueError, match="carrier has to be text in UTF-8"):
        runner.infer({"carrier": np.array([b"\xff"], dtype=object), "wind": np.ones(1), "distance": np.ones(1)})


def test_a_regression_gives_values(make: Make) -> None:
    model = HistGradientBoostingRegressor(max_iter=5, min_samples_leaf=2).fit(NUMBERS, LATE * 1.5)
    runner = make(model, NUMBERS, None)
    found = runner.infer({"x": NUMBERS.head(3).to_numpy()})
    assert list(found) == ["prediction"]
    assert found["prediction"].tolist() == model.predict(NUMBERS.head(3)).tolist()
    assert runner.run([{"distance": 100.0, "wind": 1.0}]) == [{"prediction": found["prediction"][0]}]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": np.zeros((2, 3))}, r"neither one tensor of shape \(rows, 2\)"),
        ({"x": np.zeros(2)}, "neither one tensor"),
        ({"distance": np.zeros(2), "other": np.zeros(2)}, r"distance \(2,\), other \(2,\)"),
        ({"distance": np.zeros(2), "wind": np.zeros(3)}, "differ in length"),
        ({"distance": np.zeros(0), "wind": np.zeros(0)}, "the tensors have no rows"),
        ({"x": np.zeros((0, 2))}, "the tensor has no rows"),
        ({"x": np.array([[b"far", b"1"]], dtype=object)}, "the tensor has to be of numbers"),
        ({"distance": np.array([b"far"], dtype=object), "wind": np.zeros(1)}, "distance has to be a number"),
    ],
)
def test_tensors_of_another_shape_are_refused(make: Make, tensors: dict[str, np.ndarray], message: str) -> None:
    runner = make(HistGradientBoostingRegressor(max_iter=2).fit(NUMBERS, LATE), NUMBERS, None)
    with pytest.raises(ValueError, match=message):
        runner.infer(tensors)


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        ([1.0, 2.0], 200, "prediction"),
        ([1.0, 2.0, 3.0], 400, "neither one tensor of shape (rows, 2)"),
        ([1.0, None], 500, "ValueError: Input X contains NaN"),
    ],
)
def test_tensors_of_another_shape_are_the_callers_fault_and_what_the_model_raises_is_not(
    tmp_path: Path, data: list[Any], status: int, words: str
) -> None:
    numbers = NUMBERS.dropna()
    lay_out(tmp_path, LinearRegression().fit(numbers, LATE[numbers.index]), numbers, None, "sklearn")
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, len(data)], "datatype": "FP64", "data": data}]}).encode()

    async def scenario() -> None:
        async with started(tmp_path) as pool:
            asked = Asked(pool)
            pool.submit(Call(Wire.V2, body), asked.done)
            answer = await asked.answer()
            assert answer.status == status
            assert words in answer.body.decode()

    carried_out(scenario())


# Neural networks


@pytest.fixture
def network() -> Any:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3), torch.nn.Softmax(1))


def test_a_torch_network_gives_the_same_for_rows_batches_and_tensors(make: Make, network: Any) -> None:
    runner = make(network, NUMBERS / 1000, ["a", "b", "c"], "pytorch")
    rows = [{"distance": number / 7, "wind": 1 - number / 5} for number in range(9)]
    one_by_one = [runner.run([row])[0] for row in rows]
    together = runner.batch([{"rows": rows[:4]}, {"rows": rows[4:]}])
    tensors = runner.infer({"x": np.array([list(row.values()) for row in rows])})
    assert [row["prediction"] for row in one_by_one] == tensors["prediction"].tolist()
    for found in ([row for part in together for row in part], runner.run(rows)):
        for row, wanted, values in zip(found, one_by_one, tensors["probabilities"], strict=True):
            # Products of matrices differ in the last bits with their size.
            assert row["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-6)
            assert list(row["probabilities"].values()) == pytest.approx(values.tolist(), abs=1e-6)


def test_a_network_is_served_without_pandas_or_scikit_learn(tmp_path: Path, network: Any) -> None:
    lay_out(tmp_path, network, NUMBERS.fillna(0), ["a", "b", "c"], "pytorch")
    code = "import sys, run; r = run.Runner(); r.setup(); print({'pandas', 'sklearn', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras with NumPy 2
def test_a_keras_network_gives_what_its_own_predict_gives(make: Make) -> None:
    pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, activation="softmax")])
    runner = make(network, NUMBERS.fillna(0) / 1000, ["a", "b", "c"], "keras")
    matrix = np.random.default_rng(0).random((5, 2)).astype("float32")
    found = runner.infer({"x": matrix})
    np.testing.assert_allclose(found["probabilities"], network.predict(matrix, verbose=0), rtol=1e-5)
    row = runner.run([{"distance": float(matrix[0, 0]), "wind": float(matrix[0, 1])}])[0]
    assert list(row["probabilities"].values()) == pytest.approx(found["probabilities"][0].tolist(), rel=1e-5)
