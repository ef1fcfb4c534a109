"""How sound the reference `symbols` is: what makes rows unmappable, named with examples."""

from pydantic import Field

from assetclass_pipeline.model.quality import ClassCount
from assetclass_pipeline.model.wire import WireModel


class ReferenceSample(WireModel):
    """One ticker that cannot be trusted, with the usable classes listed for it."""

    ticker: str
    classes: list[str]


class ReferenceReport(WireModel):
    """Counts of tickers in `symbols` by what can be derived from them."""

    records: int
    tickers: int = Field(description="distinct, not NULL")
    null_tickers: int
    empty_tickers: int
    mappable: int
    ambiguous: int
    unclassified: int
    padded: int = Field(
        description="tickers with blanks before or after: they match no clean symbol"
    )
    classes: list[ClassCount]
    samples: dict[str, list[ReferenceSample]]

    @property
    def is_sound(self) -> bool:
        """Whether a correction can rely on it: some ticker is mappable, none is NULL or empty."""
        return self.mappable > 0 and not self.null_tickers and not self.empty_tickers
