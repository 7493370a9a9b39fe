"""A model behind LitServe: `python server.py MODEL PORT`. Its own batching is on for the models that gain by it."""

from __future__ import annotations

import sys
from typing import Any

import litserve
import models


class One(litserve.LitAPI):
    def setup(self, device: Any) -> None:
        self.call = models.load(sys.argv[1])

    def decode_request(self, request, **more):  # without annotations: LitServe hands them to FastAPI
        return request

    def predict(self, row: Any, **more: Any) -> Any:
        return self.call([row])[0]

    def encode_response(self, output: Any, **more: Any) -> Any:
        return {"output": output}


class Many(One):
    def batch(self, inputs: Any) -> Any:
        return list(inputs)

    def predict(self, rows: Any, **more: Any) -> Any:
        return self.call(rows)

    def unbatch(self, output: Any) -> Any:
        return list(output)


if __name__ == "__main__":
    api = One() if sys.argv[1] == "echo" else Many(max_batch_size=32, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(port=int(sys.argv[2]), host="127.0.0.1", generate_client_file=False, log_level="error", access_log=False)
