"""The service: a Cog runner that needs the model and this file, and nothing of Drivetrain or MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
from cog import BaseModel, BaseRunner, Input

MODEL = Path(__file__).parent / "model" / "model.pkl"
TEXTS = ("from_airport", "to_airport", "airline")


class Answer(BaseModel):
    """Whether the flight is expected to arrive more than 15 minutes late, and with what probability."""

    late: bool
    probability: float


class Runner(BaseRunner):
    """Answers for one flight. A figure that is left out counts as unknown, as it did in training."""

    def setup(self) -> None:
        """Loads the model."""
        with MODEL.open("rb") as file:
            self.model = cloudpickle.load(file)

    def run(
        self,
        from_airport: str = Input(description="Airport of departure, its IATA code", choices=["EWR", "JFK", "LGA"]),
        to_airport: str = Input(description="Airport of arrival, its IATA code", regex="^[A-Z]{3}$"),
        airline: str = Input(description="Airline, its IATA code", regex="^[0-9A-Z]{2}$"),
        hour: float = Input(
            description="Scheduled local time of departure, in hours: 17.5 is half past five", ge=0, le=24
        ),
        weekday: float = Input(description="Day of the week; Monday is 0", ge=0, le=6),
        distance: float = Input(description="Distance in miles", ge=1, le=12000),
        temp: float | None = Input(default=None, description="Temperature at the origin in Fahrenheit"),
        dewp: float | None = Input(default=None, description="Dew point in Fahrenheit"),
        humid: float | None = Input(default=None, description="Relative humidity in percent", ge=0, le=100),
        wind_dir: float | None = Input(default=None, description="Direction of the wind in degrees", ge=0, le=360),
        wind_speed: float | None = Input(default=None, description="Speed of the wind in miles an hour", ge=0, le=253),
        precip: float | None = Input(default=None, description="Precipitation in inches an hour", ge=0),
        pressure: float | None = Input(default=None, description="Pressure at sea level in millibars", ge=850, le=1100),
        visib: float | None = Input(default=None, description="Visibility in miles", ge=0, le=10),
        carrier_mean_3h: float | None = Input(
            default=None, description="The airline's mean delay on arrival over the last 3 hours, in minutes"
        ),
        carrier_late_1d: float | None = Input(
            default=None, description="Share of the airline's flights that arrived late over the last day", ge=0, le=1
        ),
        carrier_late_7d: float | None = Input(default=None, description="The same over the last week", ge=0, le=1),
        route_mean_1d: float | None = Input(
            default=None, description="The route's mean delay on arrival over the last day, in minutes"
        ),
        route_late_1d: float | None = Input(
            default=None, description="Share of the route's flights that arrived late over the last day", ge=0, le=1
        ),
        route_late_7d: float | None = Input(default=None, description="The same over the last week", ge=0, le=1),
        origin_mean_3h: float | None = Input(
            default=None,
            description="Mean delay on arrival, over the last 3 hours, of flights from the origin, in minutes",
        ),
        origin_late_1d: float | None = Input(
            default=None,
            description="Share of the flights from the origin that arrived late over the last day",
            ge=0,
            le=1,
        ),
        origin_late_7d: float | None = Input(default=None, description="The same over the last week", ge=0, le=1),
        departures_mean_1h: float | None = Input(
            default=None, description="Mean delay on departure at the origin over the last hour, in minutes"
        ),
        departures_late_1h: float | None = Input(
            default=None,
            description="Share of the departures at the origin over 15 minutes late in the last hour",
            ge=0,
            le=1,
        ),
        departures_mean_3h: float | None = Input(
            default=None, description="Mean delay on departure at the origin over the last 3 hours, in minutes"
        ),
    ) -> Answer:
        """The answer for one flight."""
        return self.batch([{name: value for name, value in locals().items() if name != "self"}])[0]

    def batch(self, inputs: list[dict[str, Any]]) -> list[Answer]:
        """The answers for several flights, predicted in one go: 64 take little longer than one."""
        # Column by column, which is far quicker for pandas than one dictionary a row.
        columns = {name: [one.get(name) for one in inputs] for name in self.model.feature_names_in_}
        frame = pd.DataFrame(
            {name: values if name in TEXTS else np.array(values, dtype="float64") for name, values in columns.items()}
        )
        probabilities = self.model.predict_proba(frame)[:, 1].tolist()
        return [Answer(late=probability >= 0.5, probability=probability) for probability in probabilities]
