"""A chain of N steps that do nothing, run by ZenML's local orchestrator; with "cached" after N, from its cache."""

import sys

from zenml import pipeline, step


@step
def one_step(number: int) -> int:
    return number + 1


@pipeline(enable_cache="cached" in sys.argv[2:])
def chain(length: int) -> None:
    number = 0
    for _ in range(length):
        number = one_step(number)


if __name__ == "__main__":
    chain(length=int(sys.argv[1]))
