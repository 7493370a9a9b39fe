"""A chain of N components that do nothing, run by KFP's local runner in processes of this environment."""

import sys
import tempfile

from kfp import dsl, local


@dsl.component
def step(number: int) -> int:
    return number + 1


def chain_of(length: int):
    @dsl.pipeline(name="chain")
    def chain() -> int:
        number = 0
        for _ in range(length):
            number = step(number=number).output
        return number

    return chain


if __name__ == "__main__":
    length = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as root:
        local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=root, raise_on_error=True)
        run = chain_of(length)()
        print("output", run.output)
