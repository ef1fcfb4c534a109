"""`assetclass alerts test`: what each channel answers, and who asked."""

import json

from assetclass_pipeline_tests.cli.command import Command
from assetclass_pipeline_tests.market import Market
from assetclass_pipeline_tests.receiver import SECRET, Mood, Receiver, closed_port


def channels(**urls: str) -> str:
    return json.dumps([{"name": name, "url": url} for name, url in urls.items()])


def test_every_channel_gets_a_real_message(
    assetclass: Command, market: Market, receiver: Receiver
) -> None:
    done = assetclass(
        "alerts", "test", ASSETCLASS_ALERTS__CHANNELS=channels(pager=receiver.url), NO_PROXY="*"
    )
    assert done.status == 0, done.explain()
    assert "pager" in done.out
    assert "delivered" in done.out
    (title,) = receiver.titles
    assert title.startswith("TEST of AssetClass alerts, sent by ")
    assert market.rows(
        "SELECT action, outcome, parameters FROM assetclass.audit_log "
        "WHERE action = 'test_channels'"
    ) == [("test_channels", "delivered", {"channels": {"pager": "delivered"}})]


def test_one_that_fails_is_told_without_its_url(
    assetclass: Command, market: Market, receiver: Receiver, another_receiver: Receiver
) -> None:
    another_receiver.mood = Mood.FAILING
    closed = f"json://u:{SECRET}@127.0.0.1:{closed_port()}"
    urls = channels(
        pager=receiver.url, chat=another_receiver.url, closed=closed, odd=f"x://{SECRET}"
    )
    done = assetclass("alerts", "test", "--json", ASSETCLASS_ALERTS__CHANNELS=urls, NO_PROXY="*")
    assert done.status == 1, done.explain()
    tests = {one["channel"]: one for one in done.document["tests"]}
    assert {name: one["delivered"] for name, one in tests.items()} == {
        "pager": True,
        "chat": False,
        "closed": False,
        "odd": False,
    }
    assert "error=500" in tests["chat"]["error"]
    assert done.document["isRecorded"] is True
    stored = market.value("SELECT json_agg(a)::text FROM assetclass.audit_log a")
    assert SECRET not in done.out + done.err + stored


def test_only_the_one_that_is_named(
    assetclass: Command, market: Market, receiver: Receiver, another_receiver: Receiver
) -> None:
    urls = channels(pager=receiver.url, chat=another_receiver.url)
    done = assetclass(
        "alerts", "test", "--channel", "chat", ASSETCLASS_ALERTS__CHANNELS=urls, NO_PROXY="*"
    )
    assert done.status == 0, done.explain()
    assert (receiver.requests, another_receiver.requests) == (0, 1)
    unknown = assetclass("alerts", "test", "--channel", "x", ASSETCLASS_ALERTS__CHANNELS=urls)
    assert unknown.status == 2, unknown.explain()
    assert "there are pager, chat" in unknown.err
    assert (
        market.value("SELECT count(*) FROM assetclass.audit_log WHERE action = 'test_channels'")
        == 1
    )


def test_it_works_without_the_database(assetclass: Command, receiver: Receiver) -> None:
    done = assetclass(
        "alerts",
        "test",
        ASSETCLASS_ALERTS__CHANNELS=channels(pager=receiver.url),
        ASSETCLASS_DATABASE_URL=f"postgresql://127.0.0.1:{closed_port()}/x",
        NO_PROXY="*",
    )
    assert done.status == 0, done.explain()
    assert len(receiver.titles) == 1
    assert "Not in the audit log: PostgreSQL cannot be reached" in done.err


def test_without_channels_it_says_how_to_set_one(assetclass: Command) -> None:
    done = assetclass("alerts", "test")
    assert done.status == 1
    assert "ASSETCLASS_ALERTS__CHANNELS" in done.err
