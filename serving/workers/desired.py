"""The models that every worker should hold, as the changes so far have left them. Knows no processes."""

from __future__ import annotations

from dataclasses import dataclass, field

from recsys.errors import ArtifactError
from serving.fleet import ModelChange
from serving.models import Models


@dataclass(kw_only=True)
class DesiredModels:
    """Follows the changes that all workers have made, so that a new worker can be as they are."""

    first: str
    """Version of the model that every worker starts with."""
    active: str
    previous: str | None = None
    shadow: str | None = None
    share: float = 0.0
    """Of the requests that the shadow is shown."""
    bundles: dict[str, str] = field(default_factory=dict)
    """Version -> bundle, of the models that were loaded later."""
    holds_first: bool = True

    def note(self, change: ModelChange, version: str) -> None:
        """Follow a change.

        Args:
            change: that all workers have made.
            version: of the model that it was about, or that is active since.
        """
        match change.action:
            case "load":
                assert change.bundle is not None
                if version == self.first:
                    self.holds_first = True  # every worker has it from its start
                else:
                    self.bundles[version] = change.bundle
            case "shadow":
                self.shadow, self.share = change.model_version, change.share
            case "unload":
                self.previous = None if self.previous == version else self.previous
                self.shadow = None if self.shadow == version else self.shadow
                self.bundles.pop(version, None)
                self.holds_first = self.holds_first and version != self.first
            case "activate" | "rollback" if version != self.active:
                self.shadow = None if self.shadow == version else self.shadow
                self.previous, self.active = self.active, version

    async def bring_about(self, models: Models) -> None:
        """Make the models of a new worker, which holds the first alone, what they should be.

        Raises:
            RecsysError: a bundle cannot be loaded any more.
        """
        if self.active != self.first:
            await self._load(models, self.active)
            models.resume(active=self.active, previous=None, shadow=None, share=0.0)
        if not self.holds_first:
            models.unload(self.first)
        for version in self.bundles:
            if version != self.active:
                await self._load(models, version)
        models.resume(active=self.active, previous=self.previous, shadow=self.shadow, share=self.share)

    async def _load(self, models: Models, version: str) -> None:
        bundle = self.bundles[version]
        found = (await models.load(bundle)).version
        if found != version:
            raise ArtifactError(
                f"bundle: {bundle} was model {version} when it was loaded, and is {found} now; load a changed bundle "
                "under another name"
            )
