"""What all plugins share."""

from __future__ import annotations

from typing import ClassVar, Generic, TypeVar

from anaus_bench.settings.base import Settings

S = TypeVar("S", bound=Settings)


class Plugin(Generic[S]):
    """What all plugins share.

    Attributes:
        name: The name on the command line.
        version: Raised when results change; it enters the key of every stage the plugin takes part in.
        settings_class: Its settings; the defaults are the paper's values.
        reference: Paper and identifier, as one would cite it; BibTeX or a DOI/arXiv id.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    settings_class: ClassVar[type[Settings]] = Settings
    reference: ClassVar[str] = ""

    def __init__(self, settings: S) -> None:
        self.settings = settings

    def identity(self) -> dict[str, str]:
        """What shapes results beside the settings, such as the digest of a weights file; enters the keys."""
        return {}

    def describe(self) -> dict[str, str]:
        """What a reader of a result must know, such as a random start; shown and recorded."""
        return {}
