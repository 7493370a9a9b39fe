"""The plan as a Kubeflow pipeline: one container a step, whose command is `drivetrain stage NAME`.

Records travel between the steps as string parameters (JSON of an artifact's kind, digest and metadata); the bytes stay in the
object store under their digests, so the cluster's run and the local run share artifacts and cache.
"""

# No `from __future__ import annotations` here: KFP reads annotations as objects, not as text.
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp import compiler, dsl

RETRIES = 2
"""Kubernetes may take a node away at any time; a step that is tried again finds what it finished in the cache."""


@dataclass(frozen=True, slots=True)
class ContainerStep:
    """One step: `inputs` as in the table of stages, `outputs` the names of its record's fields."""

    name: str
    does: str
    inputs: Mapping[str, str]
    outputs: Sequence[str]
    cpu: float | None = None
    memory: int | None = None
    gpu: int = 0


def compile_pipeline(
    name: str, steps: Sequence[ContainerStep], image: str, target: str, pipeline_root: str | None, path: Path
) -> None:
    """Writes the pipeline's IR (PipelineSpec 2.1, YAML) to `path`, loadable by the KFP SDK and by the API server.

    Its one parameter, `parameters`, is a JSON object of definition keys to set, so that a retraining on another window needs no
    new pipeline. KFP's own caching is off: Drivetrain's keys know the code and the lock file, KFP's do not.
    """

    def lifecycle(parameters: str = "{}") -> None:
        tasks: dict[str, Any] = {}
        for step in steps:
            given = {
                input_name: tasks[source.partition(".")[0]].outputs[_output(source.partition(".")[2])]
                for input_name, source in step.inputs.items()
                if "." in source
            }
            task = _component(step, image, target)(parameters=parameters, **given)
            task.set_display_name(step.name)
            task.set_caching_options(enable_caching=False)
            # As in the local run's workers: the order of Python's sets counts towards what a step makes.
            task.set_env_variable("PYTHONHASHSEED", "0")
            task.set_retry(num_retries=RETRIES, backoff_duration="30s", backoff_factor=2.0)
            _limit(task, step)
            tasks[step.name] = task

    pipeline = dsl.pipeline(name=name, pipeline_root=pipeline_root)(lifecycle)
    compiler.Compiler().compile(pipeline, str(path))


def _output(name: str) -> str:
    """An output's name in the pipeline; it must differ from those of inputs, since KFP puts both in one signature."""
    return f"{name}_out"


def _limit(task: Any, step: ContainerStep) -> None:
    if step.cpu is not None:
        task.set_cpu_limit(f"{step.cpu:g}")
    if step.memory is not None:
        task.set_memory_limit(f"{-(-step.memory // 2**20)}Mi")
    if step.gpu:
        task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(step.gpu)


def _component(step: ContainerStep, image: str, target: str) -> Any:
    given = ["parameters", *(name for name, source in step.inputs.items() if "." in source)]

    def container(*values: Any) -> dsl.ContainerSpec:
        inputs = dict(zip(given, values, strict=False))
        outputs = dict(zip(step.outputs, values[len(given) :], strict=True))
        args: list[Any] = [step.name, "--target", target, "--run", dsl.PIPELINE_JOB_NAME_PLACEHOLDER]
        args += ["--parameters", inputs.pop("parameters")]
        for name, value in inputs.items():
            args += ["--input", name, value]
        for name, value in outputs.items():
            args += ["--output", name, value]
        return dsl.ContainerSpec(image=image, command=["drivetrain", "stage"], args=args)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, annotation=str) for name in given]
    parameters += [inspect.Parameter(_output(name), kind, annotation=dsl.OutputPath(str)) for name in step.outputs]
    container.__name__ = step.name
    container.__doc__ = step.does
    container.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return dsl.container_component(container)
