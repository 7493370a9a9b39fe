"""The replica: a Cog runner behind Cog's HTTP API, KServe's V1 and the Open Inference Protocol (V2).

Two processes. The front (`app`) speaks HTTP and keeps the queue; it never touches the model and so always answers health checks. The
worker (`worker`) loads the runner, decodes bodies, validates, predicts and encodes; it may block, crash or be killed. Frames over a socket
pair (`channel`) join them.

A gateway posts the bytes of a gRPC ModelInferRequest to `/v2/models/NAME/infer` with the content type
`application/vnd.open-inference+protobuf`: a call of `Wire.GRPC`, answered 200 with the bytes of a ModelInferResponse, else as V2 is.
"""
