"""MLflow: experiments, logged models and the model registry, on a database file or a server."""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

# Read by MLflow while it is imported: usage reports go to its makers unless this is set.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
import mlflow.data.dataset_source_registry
import mlflow.data.meta_dataset
import pandas as pd
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from drivetrain.backends.tracking import ModelVersion, SavedModel, TrackedRun, flavors, stored
from drivetrain.errors import DrivetrainError, StageError, SystemFault, Unavailable
from drivetrain.records import Scalar
from drivetrain.redact import Redactor

_MODEL = "model"
_LONGEST_DIGEST = 36
_LONGEST_VALUE = 5000
_NO_SUCH = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}
_EXISTS = {"RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"}
_SILENT = re.compile(
    "API request to|Max retries exceeded|database is locked|Connection refused|timed out|could not connect"
)
_TAKEN = re.compile("IntegrityError|UniqueViolation|Duplicate entry")
"""What SQLite, PostgreSQL and MySQL say, through MLflow, of a row that somebody else has made since it was looked for."""
_OTHER_AUTOLOGGERS = [
    "ag2", "agno", "anthropic", "autogen", "bedrock", "crewai", "dspy", "gemini", "groq", "haystack", "langchain", "litellm",
    "llama_index", "mistral", "openai", "pydantic_ai", "smolagents", "spark", "pyspark.ml", "strands", "tensorflow", "typesafe",
]  # fmt: skip
"""Language-model clients and Spark: nothing that is trained here, and `bedrock` would be loaded with every boto3. TensorFlow's
own autologger wants TensorBoard, which no longer comes with it; Keras's logs the same without."""


def open_tracking(uri: str, artifacts: str | None) -> MLflow:
    """The tracker at `uri` (`sqlite:////abs/mlflow.db`, `https://...`).

    `artifacts` is the directory or `s3://` URI under which new experiments keep their files; None leaves that to the
    server. A server that does not answer is given up after a few seconds, for the runner retries the stage.
    """
    mlflow.environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(1)
    mlflow.environment_variables.MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR.set(1)
    mlflow.environment_variables.MLFLOW_HTTP_REQUEST_TIMEOUT.set(30)
    mlflow.environment_variables.MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.set(True)
    mlflow.environment_variables.MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)
    # MLflow warns of the format that it is told to use, and that pip is missing where uv made the environment.
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        _make_database(Path(uri.removeprefix("sqlite:///")))
    return MLflow(uri, artifacts)


def _make_database(path: Path) -> None:
    """MLflow's tables, all or none: it makes them one by one, and cannot open a database with half of them."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)
    with _border("making its database"):
        mlflow.MlflowClient(f"sqlite:///{scratch}").search_experiments(max_results=1)
    with suppress(FileExistsError):  # another process was quicker: its database counts
        os.link(scratch, path)
    scratch.unlink()


@contextmanager
def _border(act: str) -> Iterator[None]:
    try:
        # What MLflow and the libraries under it warn of is not the user's to mend.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (MlflowException, OSError) as error:
        text = Redactor({})(str(error)).splitlines()[0][:500]
        if _SILENT.search(str(error)) or isinstance(error, ConnectionError | TimeoutError):
            raise Unavailable(f"MLflow did not answer ({act}): {text}", hint="is the tracking server up?") from error
        raise SystemFault(f"MLflow failed ({act}): {text}") from error


class MLflow:
    """`Tracking` by an MLflow database or server."""

    def __init__(self, uri: str, artifacts: str | None) -> None:
        self._uri = uri
        self._artifacts = artifacts

    def _client(self) -> mlflow.MlflowClient:
        # The registry asks a client of its own for the logged model, which knows the global address alone.
        mlflow.set_tracking_uri(self._uri)
        mlflow.set_registry_uri(self._uri)
        return mlflow.MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)

    def train(
        self, experiment: str, name: str, tags: Mapping[str, str], parameters: Mapping[str, Any]
    ) -> AbstractContextManager[TrackedRun]:
        """See `Tracking.train`. Parameters are logged as `train.NAME`: autologging logs the estimator's own under their
        plain names, and MLflow refuses two values for one name."""
        return self._train(experiment, name, tags, parameters)

    @contextmanager
    def _train(
        self, experiment: str, name: str, tags: Mapping[str, str], parameters: Mapping[str, Any]
    ) -> Iterator[TrackedRun]:
        with _border("starting a run"):
            client = self._client()
            experiment_id = self._experiment(client, experiment)
            _autolog()
            active = mlflow.start_run(experiment_id=experiment_id, run_name=name, log_system_metrics=False)
            client.log_batch(
                active.info.run_id,
                params=[Param(f"train.{key}", str(value)[:_LONGEST_VALUE]) for key, value in parameters.items()],
                tags=[RunTag(key, value[:_LONGEST_VALUE]) for key, value in tags.items()],
            )
            monitor = SystemMetricsMonitor(active.info.run_id, sampling_interval=10, tracking_uri=self._uri)
            monitor.start()
        try:
            yield _Run(active.info.run_id)
        except BaseException as error:
            _end(monitor, "FAILED" if isinstance(error, Exception) else "KILLED", quietly=True)
            raise
        _end(monitor, "FINISHED", quietly=False)

    def _experiment(self, client: mlflow.MlflowClient, name: str) -> str:
        found = client.get_experiment_by_name(name)
        if found is None:
            place = None if self._artifacts is None else f"{self._artifacts.rstrip('/')}/{name}"
            try:
                return str(client.create_experiment(name, artifact_location=place))
            except MlflowException as error:
                if error.error_code not in _EXISTS:
                    raise
                found = client.get_experiment_by_name(name)
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def load(self, directory: Path) -> stored.StoredModel:
        """See `Tracking.load`."""
        try:
            note = stored.read_note(directory)
            stored.forget_other_code(directory / "code")
            model = import_module(f"mlflow.{note.flavor}").load_model(str(directory))
        except Exception as error:
            raise StageError(
                f"the stored model does not load: {type(error).__name__}: {error}",
                hint="a model is loaded with the packages in its requirements.txt and the project's modules beside it",
            ) from error
        return stored.StoredModel(model, flavors.recognise(model), note.classes, note.features)

    def log_evaluation(self, run_id: str, metrics: Mapping[str, float], directory: Path) -> None:
        """See `Tracking.log_evaluation`. The metrics are the run's and its logged model's."""
        with _border("logging the evaluation"):
            client = self._client()
            run = client.get_run(run_id)
            # One time for all, that of the run's end: logging again overwrites nothing and adds nothing new.
            time = run.info.end_time or run.info.start_time
            model_id = _model_id(run)
            entries = [Metric(key, value, time, 0, model_id=model_id, run_id=run_id) for key, value in metrics.items()]
            client.log_batch(run_id, metrics=entries)
            client.log_artifacts(run_id, str(directory), "evaluation")

    def register(self, name: str, run_id: str, tags: Mapping[str, str], description: str) -> ModelVersion:
        """See `Tracking.register`. Raises `StageError` if the run has logged no model."""
        with _border("registering the model"):
            client = self._client()
            try:
                client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code not in _EXISTS:
                    raise
            found = client.search_model_versions(f"name='{name}' and run_id='{run_id}'", max_results=1)
            if found:
                for key, value in tags.items():
                    client.set_model_version_tag(name, found[0].version, key, value[:_LONGEST_VALUE])
                version = found[0].version
            else:
                version = self._create_version(client, name, run_id, tags, description)
            return _version(client.get_model_version(name, version))

    def _create_version(
        self, client: mlflow.MlflowClient, name: str, run_id: str, tags: Mapping[str, str], description: str
    ) -> str:
        model_id = _model_id(client.get_run(run_id))
        if model_id is None:
            raise StageError(f"the MLflow run {run_id} has no model", hint="run the stage train again: `--from train`")
        made = client.create_model_version(
            name, f"models:/{model_id}", run_id, {k: v[:_LONGEST_VALUE] for k, v in tags.items()},
            description=description, model_id=model_id,
        )  # fmt: skip
        return str(made.version)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """See `Tracking.set_alias`."""
        with _border(f"setting the alias {alias}"):
            client = self._client()
            _despite_others(lambda: client.set_registered_model_alias(name, alias, version))

    def drop_alias(self, name: str, alias: str) -> None:
        """See `Tracking.drop_alias`."""
        with _border(f"dropping the alias {alias}"):
            try:
                self._client().delete_registered_model_alias(name, alias)
            except MlflowException as error:
                if not _is_missing(error):
                    raise

    def version(self, name: str, selector: str) -> ModelVersion | None:
        """See `Tracking.version`."""
        with _border("reading the registry"):
            client = self._client()
            try:
                if selector.isdecimal():
                    return _version(client.get_model_version(name, selector))
                # Again by number: the answer to an alias does not carry the version's aliases on every server.
                number = client.get_model_version_by_alias(name, selector).version
                return _version(client.get_model_version(name, number))
            except MlflowException as error:
                if _is_missing(error):
                    return None
                raise

    def tag_version(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        """See `Tracking.tag_version`."""
        with _border("tagging the version"):
            client = self._client()
            for key, value in tags.items():
                client.set_model_version_tag(name, version, key, value[:_LONGEST_VALUE])


def _despite_others(act: Callable[[], object]) -> None:
    """MLflow looks for a row and then makes it: of two processes that do so at once, the second finds it the next time."""
    try:
        act()
    except MlflowException as error:
        if not _TAKEN.search(str(error)):
            raise
        act()


def _is_missing(error: MlflowException) -> bool:
    # A missing alias is reported as an invalid value, and told apart by its words alone.
    return error.error_code in _NO_SUCH or ("alias" in str(error) and "not found" in str(error))


def _model_id(run: Any) -> str | None:
    """The id of the model logged last in a run."""
    logged = run.outputs.model_outputs if run.outputs else []
    return str(max(logged, key=lambda output: output.step).model_id) if logged else None


def _version(found: Any) -> ModelVersion:
    return ModelVersion(found.name, str(found.version), found.run_id or "", tuple(found.aliases), dict(found.tags))


def _autolog() -> None:
    """Autologging without models and data sets, which are logged here once, with a signature and locked requirements.

    MLflow would also draw three plots of the training data after each fit of a classifier, 2 to 5 s that no option
    takes away; the stage evaluate draws them of the hold-out.
    """
    options = {"log_models": False, "log_datasets": False, "silent": True}
    if "sklearn" in sys.modules:
        mlflow.sklearn.autolog(log_post_training_metrics=False, **options)
        vars(import_module("mlflow.sklearn.utils"))["_get_classifier_artifacts"] = lambda *arguments: []
    mlflow.autolog(exclude_flavors=_OTHER_AUTOLOGGERS, **options)


def _end(monitor: SystemMetricsMonitor, status: str, *, quietly: bool) -> None:
    """Ends the run with a last sample of the system metrics, so that one shorter than the interval has them too."""
    try:
        with _border("ending the run"):
            monitor.finish()
            monitor.collect_metrics()
            monitor.publish_metrics(monitor.aggregate_metrics())
            monitor.mlflow_logger.flush()
            mlflow.end_run(status)
    except SystemFault:
        if not quietly:
            raise
    finally:
        if "sklearn" in sys.modules:
            mlflow.sklearn.autolog(disable=True, silent=True)
        mlflow.autolog(disable=True, silent=True)


@dataclass(frozen=True, slots=True)
class _Run:
    """`TrackedRun` by the active MLflow run."""

    id: str

    def log_dataset(self, name: str, digest: str, uri: str, rows: int, features: Sequence[str], label: str) -> None:
        """See `TrackedRun.log_dataset`. MLflow cuts a digest at 36 characters: the tag `digest` holds all of it."""
        tags = {"digest": digest, "rows": str(rows), "features": ",".join(features)[:500], "label": label}
        with _border("logging the data set"):
            source = mlflow.data.dataset_source_registry.resolve_dataset_source(uri)
            dataset = mlflow.data.meta_dataset.MetaDataset(source, name=name, digest=digest[:_LONGEST_DIGEST])
            _despite_others(lambda: mlflow.log_input(dataset, context="training", tags=tags))

    def save_model(
        self,
        model: Any,
        example: pd.DataFrame,
        directory: Path,
        *,
        labels: Sequence[Scalar] | None,
        code: Mapping[str, Path],
    ) -> SavedModel:
        """See `TrackedRun.save_model`."""
        flavor = flavors.recognise(model)
        example = _nullable(example)
        known = stored.in_memory(model, example, labels).classes
        classes = None if known is None else list(known)
        with tempfile.TemporaryDirectory() as temporary:
            arguments = {
                **flavor.options,
                "signature": _signature(model, flavor, example),
                "pip_requirements": flavors.requirements(model, flavor),
            }
            shown = {"input_example": flavors.matrix(example) if flavor.tensors else example}
            if flavor is flavors.KERAS:
                # MLflow's Keras flavour takes no code. It writes the example into a directory before it makes it, and so
                # cannot log one.
                directory.mkdir(parents=True)
                logged: dict[str, Any] = {}
            else:
                arguments["code_paths"] = stored.copy_code(code, Path(temporary)) or None
                logged = shown
            library = import_module(f"mlflow.{flavor.name}")
            with _storing(model):
                library.save_model(model, str(directory), **arguments, **shown)
                library.log_model(model, name=_MODEL, **arguments, **logged)
        stored.write_note(directory, stored.Note(flavor.name, classes, list(example.columns)))
        stored.make_stable(directory)
        return SavedModel(flavor.name, classes)


@contextmanager
def _storing(model: Any) -> Iterator[None]:
    try:
        with _border("storing the model"):
            yield
    except (DrivetrainError, MemoryError):
        raise
    except Exception as error:
        raise StageError(
            f"the {type(model).__name__} that the training function returned cannot be stored: {type(error).__name__}: {error}",
            hint="a model must not hold open files, locks, generators or lambdas defined at a prompt",
        ) from error


def _nullable(example: pd.DataFrame) -> pd.DataFrame:
    """The rows with whole numbers as floating ones: a signature of integers would refuse a null later."""
    whole = [name for name, kind in example.dtypes.items() if pd.api.types.is_integer_dtype(kind)]
    return example.reset_index(drop=True).astype(dict.fromkeys(whole, "float64"))


def _signature(model: Any, flavor: flavors.Flavor, example: pd.DataFrame) -> Any:
    """What MLflow's own `predict` of the flavour takes and gives."""
    features = flavors.matrix(example) if flavor.tensors else example
    return mlflow.models.infer_signature(features, flavor.raw(model, example, False))
