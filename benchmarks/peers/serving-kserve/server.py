"""A model behind KServe's own model server: `python server.py MODEL PORT`."""

from __future__ import annotations

import sys
from typing import Any

import kserve
import models


class Model(kserve.Model):
    def __init__(self, name: str) -> None:
        super().__init__("model")
        self._call = models.load(name)
        self.ready = True

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return {"predictions": self._call(payload["instances"])}


if __name__ == "__main__":
    kserve.logging.configure_logging({"version": 1, "disable_existing_loggers": True})
    kserve.ModelServer(http_port=int(sys.argv[2]), workers=1, enable_grpc=False, access_log_format=None).start(
        [Model(sys.argv[1])]
    )
