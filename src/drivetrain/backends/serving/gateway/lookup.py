"""Online features, opened by the name of what opens them: the gateway knows no feature store."""

from __future__ import annotations

import importlib

from drivetrain.backends.serving.gateway.contracts import OnlineFeatures
from drivetrain.backends.serving.gateway.enrich import Enriched, enrich
from drivetrain.backends.serving.gateway.settings import LookingUp
from drivetrain.errors import UsageError


class Lookup:
    """The look-up of one service."""

    def __init__(self, features: OnlineFeatures, settings: LookingUp) -> None:
        self._features = features
        self._settings = settings

    async def enrich(self, path: str, content_type: str, body: bytes) -> Enriched:
        """The body with the features in it."""
        return await enrich(path, content_type, body, self._features, self._settings)

    async def prepare(self) -> None:
        """Makes the first look-up as fast as the others."""
        await self._features.prepare()

    async def close(self) -> None:
        """Lets the store go."""
        await self._features.close()


def open_lookup(settings: LookingUp) -> Lookup:
    """The look-up that the settings name. Raises `UsageError` if there is no such function, and what it raises."""
    module, _, function = settings.opener.partition(":")
    try:
        opener = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"the look-up {settings.opener} cannot be opened: {error}") from error
    features: OnlineFeatures = opener(settings.options)
    return Lookup(features, settings)
