"""What is known about a flight an hour before its scheduled departure: a Feast repository, usable by Feast's own commands as well.

Each source is a table of `drivetrain.yaml`, written to `data/TABLE.parquet` beside this file. Its `known` column says
when a row's values became known, and Feast gives every flight the latest row at or before that moment. `ttl` is how
old a row may be; beyond that the features are null.
"""

from datetime import timedelta
from typing import Any

import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, String

origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING, description="Airport of departure")
dest = Entity(name="dest", join_keys=["dest"], value_type=ValueType.STRING, description="Airport of arrival")
carrier = Entity(name="carrier", join_keys=["carrier"], value_type=ValueType.STRING, description="Airline, two letters")

FOREVER = timedelta(days=36500)


def numbers(*names: str) -> list[Field]:
    return [Field(name=name, dtype=Float64) for name in names]


def rolling(prefix: str, *windows: str) -> list[Field]:
    """Mean delay in minutes, share of flights over 15 minutes late, and number of flights, over each window."""
    return numbers(*(f"{prefix}_{figure}_{window}" for window in windows for figure in ("mean", "late", "count")))


airlines = FeatureView(
    name="airlines",
    description="The airline itself",
    entities=[carrier],
    ttl=FOREVER,
    schema=[Field(name="airline", dtype=String)],
    source=FileSource(name="airlines_table", path="data/airlines.parquet", timestamp_field="known"),
)

routes = FeatureView(
    name="routes",
    description="The route itself; distance in miles",
    entities=[origin, dest],
    ttl=FOREVER,
    schema=[Field(name="from_airport", dtype=String), Field(name="to_airport", dtype=String), *numbers("distance")],
    source=FileSource(name="routes_table", path="data/routes.parquet", timestamp_field="known"),
)

weather = FeatureView(
    name="weather",
    description="The last full hour's observation at the airport of departure",
    entities=[origin],
    ttl=timedelta(hours=6),
    schema=numbers("temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"),
    source=FileSource(name="weather_table", path="data/weather.parquet", timestamp_field="known"),
)

carrier_delays = FeatureView(
    name="carrier_delays",
    description="Delays of the airline's flights that had arrived",
    entities=[carrier],
    ttl=timedelta(days=1),
    schema=rolling("carrier", "3h", "1d", "7d"),
    source=FileSource(name="carrier_delays_table", path="data/carrier_delays.parquet", timestamp_field="known"),
)

route_delays = FeatureView(
    name="route_delays",
    description="Delays of the route's flights that had arrived",
    entities=[origin, dest],
    ttl=timedelta(days=1),
    schema=rolling("route", "1d", "7d"),
    source=FileSource(name="route_delays_table", path="data/route_delays.parquet", timestamp_field="known"),
)

origin_arrivals = FeatureView(
    name="origin_arrivals",
    description="Delays of the airport's flights that had arrived",
    entities=[origin],
    ttl=timedelta(days=1),
    schema=rolling("origin", "3h", "1d", "7d"),
    source=FileSource(name="origin_arrivals_table", path="data/origin_arrivals.parquet", timestamp_field="known"),
)

origin_departures = FeatureView(
    name="origin_departures",
    description="Delays of the airport's flights that had left",
    entities=[origin],
    ttl=timedelta(hours=6),
    schema=rolling("departures", "1h", "3h"),
    source=FileSource(name="origin_departures_table", path="data/origin_departures.parquet", timestamp_field="known"),
)

flight = RequestSource(
    name="flight",
    description="What the caller knows of the flight: its scheduled local departure, such as 2013-03-29T17:30",
    schema=[Field(name="departs", dtype=String)],
)


@on_demand_feature_view(
    name="schedule",
    description="Hour of the day (17.5 is half past five) and day of the week (Monday is 0) of the scheduled departure",
    sources=[flight],
    schema=numbers("hour", "weekday"),
    mode="pandas",
)
def schedule(inputs: pd.DataFrame) -> pd.DataFrame:
    # Feast tries the function with a text that is no time, when it reads this file.
    departs = pd.to_datetime(inputs["departs"], format="ISO8601", errors="coerce")
    outputs: dict[str, Any] = {
        "hour": departs.dt.hour + departs.dt.minute / 60,
        "weekday": departs.dt.dayofweek.astype("float64"),
    }
    return pd.DataFrame(outputs)


# The views hold more than the model uses: a feature left out here is still there for the next experiment.
late_arrival = FeatureService(
    name="late_arrival",
    description="What the model of late arrivals is given",
    features=[
        airlines,
        routes,
        schedule,
        weather,
        carrier_delays[["carrier_mean_3h", "carrier_late_1d", "carrier_late_7d"]],
        route_delays[["route_mean_1d", "route_late_1d", "route_late_7d"]],
        origin_arrivals[["origin_mean_3h", "origin_late_1d", "origin_late_7d"]],
        origin_departures[["departures_mean_1h", "departures_late_1h", "departures_mean_3h"]],
    ],
)
