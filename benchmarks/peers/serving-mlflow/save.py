"""A model as MLflow's pyfunc, saved for `mlflow models serve`: `python save.py MODEL DIRECTORY`."""

from __future__ import annotations

import sys
from typing import Any

import mlflow
import models


class Model(mlflow.pyfunc.PythonModel):
    def load_context(self, context: Any) -> None:
        self.call = models.load(sys.argv[1] if len(sys.argv) == 3 else self.name)

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        return self.call(model_input.to_dict("records"))


if __name__ == "__main__":
    model = Model()
    model.name = sys.argv[1]
    mlflow.pyfunc.save_model(sys.argv[2], python_model=model, pip_requirements=["mlflow"])
