"""A flow of 5 steps that do nothing, as Metaflow's users write one: `python chain_5.py run`."""

from metaflow import FlowSpec, step


class Chain5(FlowSpec):
    @step
    def start(self):
        self.number = 1
        self.next(self.step_2)

    @step
    def step_2(self):
        self.number = self.number + 1
        self.next(self.step_3)

    @step
    def step_3(self):
        self.number = self.number + 1
        self.next(self.step_4)

    @step
    def step_4(self):
        self.number = self.number + 1
        self.next(self.end)

    @step
    def end(self):
        self.number = self.number + 1


if __name__ == "__main__":
    Chain5()
