"""The protocols of the replica, a module each: bytes to checked inputs, outcomes to bytes. Pure; runs in the worker."""

from __future__ import annotations

from drivetrain.backends.serving.replica.calls import Codec, Signature, Wire


def codec_for(wire: Wire, signature: Signature) -> Codec:
    """The codec of a protocol for one runner. Raises `ServingError` if the runner's schema cannot be checked against."""
    # Each is imported when it is first asked for: gRPC's messages and numpy cost start-up time that Cog's API does not need.
    if wire is Wire.COG:
        from drivetrain.backends.serving.replica.codecs.cog import CogCodec

        return CogCodec(signature)
    if wire is Wire.V1:
        from drivetrain.backends.serving.replica.codecs.v1 import V1Codec

        return V1Codec(signature)
    if wire is Wire.V2:
        from drivetrain.backends.serving.replica.codecs.v2 import V2Codec

        return V2Codec(signature)
    from drivetrain.backends.serving.replica.codecs.grpc import GrpcCodec

    return GrpcCodec(signature)
