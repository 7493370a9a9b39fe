"""A chain of N tasks that do nothing, run by Flyte in its local mode; `chain.py N cached` lets tasks come from the cache."""

import sys

import flyte

env = flyte.TaskEnvironment(name="chain", cache="auto" if "cached" in sys.argv[2:] else "disable")


@env.task
def step(number: int) -> int:
    return number + 1


@env.task(cache="disable")
def chain(length: int) -> int:
    number = 0
    for _ in range(length):
        number = step(number)
    return number


if __name__ == "__main__":
    flyte.init()
    run = flyte.with_runcontext(mode="local").run(chain, length=int(sys.argv[1]))
    print(run.outputs())
