"""What the doctor finds beyond health, each for real, with its mend."""

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from assetclass_pipeline.database import schema
from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.database.indexes import ensure_indexes
from assetclass_pipeline.engine.backup_verification import verify_backup
from assetclass_pipeline.engine.correction import CorrectionRequest, correct
from assetclass_pipeline.errors import InvalidSettingsError
from assetclass_pipeline.model.alert import Severity
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.monitoring import doctor
from assetclass_pipeline.monitoring.doctor import (
    Examination,
    Finding,
    Verdict,
    examine_channels,
    examine_database,
    examine_files,
    examine_settings,
)
from assetclass_pipeline.settings import AlertSettings, Channel, Settings, load_settings
from assetclass_pipeline_tests.market import Bar, Market, open_market


@pytest.fixture
def market(database_url: str) -> Iterator[Market]:
    with open_market(database_url) as made:
        made.list_symbols(("AAPL", "STOCK")).add([Bar(1, "AAPL"), Bar(2, "AAPL")])
        yield made


def examine(market: Market, settings: Settings | None = None) -> dict[str, list[Finding]]:
    """Findings of the database by subject."""
    settings = settings or market.settings
    found: dict[str, list[Finding]] = {}
    with connect(market.dsn, settings, purpose="test") as connection:
        for finding in examine_database(connection, market.dsn, settings):
            found.setdefault(finding.subject, []).append(finding)
    return found


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


@pytest.mark.every_postgres
def test_a_database_in_order(market: Market) -> None:
    ensure_indexes(market.dsn, market.settings, lambda _: None)
    found = examine(market)
    worst = {name: {one.verdict for one in findings} for name, findings in found.items()}
    assert worst.pop("nextCorrection") <= {Verdict.FINE, Verdict.NOTE}
    assert set().union(*worst.values()) == {Verdict.FINE}
    assert [*worst] == ["postgresVersion", "clock", "migrations", "indexes", "backups"]


def test_a_newer_server_than_tested(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NEWEST_TESTED", 13)
    finding = only(examine(market)["postgresVersion"])
    assert finding.verdict is Verdict.NOTE
    assert "tested are 14 to 13" in finding.message


@pytest.mark.parametrize(
    ("ahead", "verdict"),
    [(0, Verdict.FINE), (5, Verdict.NOTE), (-5, Verdict.NOTE), (60, Verdict.TROUBLE)],
)
def test_clocks_that_differ(
    market: Market, monkeypatch: pytest.MonkeyPatch, ahead: float, verdict: Verdict
) -> None:
    now = time.time
    monkeypatch.setattr("assetclass_pipeline.monitoring.doctor.time.time", lambda: now() - ahead)
    finding = only(examine(market)["clock"])
    assert finding.verdict is verdict
    assert ahead == 0 or ("ahead of" if ahead > 0 else "behind") in finding.message


def test_pending_migrations(market: Market) -> None:
    schema.downgrade(market.dsn, market.settings, "0005")
    finding = only(examine(market)["migrations"])
    assert (finding.verdict, finding.mend) == (Verdict.TROUBLE, "assetclass db upgrade")
    assert "pending: 0006" in finding.message


def test_indexes_that_are_missing_invalid_or_different(market: Market) -> None:
    assert len(examine(market)["indexes"]) == 3
    ensure_indexes(market.dsn, market.settings, lambda _: None)
    market.execute(
        "UPDATE pg_index SET indisvalid = false "
        "WHERE indexrelid = 'idx_market_data_correctable'::regclass"
    )
    finding = only(examine(market)["indexes"])
    assert (finding.verdict, finding.mend) == (Verdict.NOTE, "assetclass db indexes")
    assert finding.message.endswith("is INVALID, and so of no use.")
    ensure_indexes(market.dsn, market.settings, lambda _: None)
    market.execute("DROP INDEX idx_market_data_correctable")
    market.execute("CREATE INDEX idx_market_data_correctable ON market_data (symbol)")
    assert "has another definition" in only(examine(market)["indexes"]).message


@pytest.mark.parametrize("partitioning", ["range", "nested"])
def test_indexes_of_a_partitioned_table(database_url: str, partitioning: str) -> None:
    with open_market(
        database_url, partitioning=partitioning, key='PRIMARY KEY (id, "timestamp")'
    ) as market:
        assert len(examine(market)["indexes"]) == 3
        ensure_indexes(market.dsn, market.settings, lambda _: None)
        assert only(examine(market)["indexes"]).verdict is Verdict.FINE


def test_backups(market: Market) -> None:
    request = CorrectionRequest(str(uuid.uuid4()), CorrectionOptions())
    operation = correct(market.dsn, market.settings, request)
    assert only(examine(market)["backups"]).message.startswith("1 backups can undo")
    market.execute("UPDATE assetclass.backup SET expires_at = now() - interval '1 s'")
    expired = only(examine(market)["backups"])
    assert expired.verdict is Verdict.NOTE
    market.execute("UPDATE assetclass.backup SET checksum = checksum || '7'")
    with connect(market.dsn, market.settings, purpose="test") as connection:
        verify_backup(connection, market.settings, operation.correction_id, by="test")
    market.execute("CREATE TABLE market_data_backup_20200101_000000 (id int)")
    damaged, *others = examine(market)["backups"]
    assert damaged.verdict is Verdict.TROUBLE
    assert operation.correction_id in (damaged.mend or "")
    assert "look like backups" in others[-1].message


def test_what_the_next_correction_meets(market: Market) -> None:
    assert "an unknown number of rows" in examine(market)["nextCorrection"][-1].message
    market.execute(
        """INSERT INTO assetclass.quality_measurement
               (source, total_records, completeness, integrity, orphaned_percent, quality_score,
                correctable, report)
           VALUES ('quality_report', 2, 0, 100, 0, 0, 2000000000000, '{{}}')"""
    )
    found = examine(market, market.settings)["nextCorrection"]
    assert any("Backup and new row versions need about" in one.message for one in found)
    market.execute("DROP TABLE symbols")
    finding = only(examine(market)["nextCorrection"])
    assert finding.message == "It cannot begin before the market tables can be used."


def test_looking_changes_nothing(market: Market) -> None:
    request = CorrectionRequest(str(uuid.uuid4()), CorrectionOptions())
    correct(market.dsn, market.settings, request)
    market.execute("DELETE FROM assetclass.backup")
    before = market.everything()
    examine(market)
    assert market.everything() == before


def test_a_part_that_cannot_be_examined_is_a_finding(market: Market) -> None:
    market.execute("DROP TABLE assetclass.backup CASCADE")
    finding = only(examine(market)["backups"])
    assert finding.verdict is Verdict.TROUBLE
    assert finding.message.startswith("It cannot be examined: ")


def alerts(*channels: Channel) -> Settings:
    return load_settings(alerts=AlertSettings(channels=channels))


def channel(name: str, url: str = "json://localhost", **more: object) -> Channel:
    return Channel.model_validate({"name": name, "url": SecretStr(url), **more})


def test_channels() -> None:
    assert only([*examine_channels(alerts())]).verdict is Verdict.NOTE
    assert only([*examine_channels(alerts(channel("pager")))]).verdict is Verdict.FINE
    bad, _ = examine_channels(alerts(channel("bad", "nonsense://secret"), channel("pager")))
    assert bad.verdict is Verdict.TROUBLE
    assert "secret" not in bad.message
    calm = channel("calm", severities={Severity.LOW})
    later = channel("later", level=2)
    *_, last = examine_channels(alerts(calm, later))
    assert last.verdict is Verdict.TROUBLE
    assert "nobody is paged at once" in last.message


def test_settings_and_where_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSETCLASS_TIME_ZONE", "Asia/Tokyo")
    monkeypatch.setenv("ASSETCLASS_DATABASE_URL", "postgresql://me:secret@localhost/x")
    monkeypatch.setenv("ASSETCLASS_RETRY__TRIES", "5")
    monkeypatch.setenv("ASSETCLASS_DATABASE_URI", "postgresql://elsewhere")
    monkeypatch.setenv("ASSETCLASS_SESSION__LOCK_TIME", "1")
    monkeypatch.setenv("ASSETCLASS_ALERTS__REMINDERS__HIGH", "60")
    monkeypatch.setenv("ASSETCLASS_ALERTS__REMINDERS__URGENT", "60")
    monkeypatch.setenv("ASSETCLASS_API__OIDC__ISSUER", "https://id.example.com")
    monkeypatch.setenv("ASSETCLASS_API__OIDC__AUDIENCE", "assetclass")
    monkeypatch.setenv("ASSETCLASS_API__OIDC__JWKS_URL", "https://id.example.com/keys")
    monkeypatch.setenv("ASSETCLASS_API__OIDC__ROLES__GROUP", "viewer")
    monkeypatch.setenv("ASSETCLASS_API__OIDC__AUDIENCES", "assetclass")
    found = [*examine_settings(load_settings())]
    trouble = [one.message for one in found if one.verdict is Verdict.TROUBLE]
    assert trouble == [
        "ASSETCLASS_ALERTS__REMINDERS__URGENT sets nothing: there is no such setting.",
        "ASSETCLASS_API__OIDC__AUDIENCES sets nothing: there is no such setting.",
        "ASSETCLASS_DATABASE_URI sets nothing: there is no such setting.",
        "ASSETCLASS_SESSION__LOCK_TIME sets nothing: there is no such setting.",
    ]
    said = " ".join(one.message for one in found)
    assert "time_zone is Asia/Tokyo, from ASSETCLASS_TIME_ZONE." in said
    assert "from ASSETCLASS_RETRY__TRIES." in said
    assert "secret" not in said


def test_a_misspelt_part_of_a_channel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignored, it would wake people at night for what can wait a week."""
    channels = '[{"name": "pager", "url": "json://host/S3CRET", "severity": ["high"]}]'
    monkeypatch.setenv("ASSETCLASS_ALERTS__CHANNELS", channels)
    with pytest.raises(InvalidSettingsError, match="CHANNELS__0__SEVERITY") as caught:
        load_settings()
    assert "S3CRET" not in str(caught.value)


def test_files_that_others_may_read_or_change(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path, archive_directory=tmp_path / "archive")
    password = tmp_path / "postgres" / "password"
    password.parent.mkdir()
    password.write_text("secret")
    password.chmod(0o600)
    tmp_path.chmod(0o755)
    assert only([*examine_files(settings)]).verdict is Verdict.FINE
    password.chmod(0o640)
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive").chmod(0o777)
    found = [*examine_files(settings)]
    assert [one.mend for one in found] == [
        f"chmod 600 {password}",
        f"chmod go-w {tmp_path / 'archive'}",
    ]


def test_the_worst_comes_first() -> None:
    findings = [
        Finding(subject=verdict, verdict=verdict, message="")
        for verdict in (Verdict.FINE, Verdict.TROUBLE, Verdict.NOTE)
    ]
    whole = Examination.of(findings)
    assert [one.verdict for one in whole.findings] == [
        Verdict.TROUBLE, Verdict.NOTE, Verdict.FINE
    ]  # fmt: skip
    assert not whole.is_healthy
    assert Examination.of(findings[:1] + findings[2:]).is_healthy


def test_a_role_without_rights_gets_findings_not_an_error(market: Market) -> None:
    role = psycopg.sql.Identifier(f"stranger_{uuid.uuid4().hex[:8]}")
    market.execute("CREATE ROLE {} LOGIN PASSWORD 'x'", role)
    try:
        dsn = psycopg.conninfo.make_conninfo(
            market.dsn, user=role.as_string().strip('"'), password="x"
        )
        with connect(dsn, market.settings, purpose="test") as connection:
            found = [*examine_database(connection, dsn, market.settings)]
        troubled = {one.subject for one in found if one.verdict is Verdict.TROUBLE}
        assert {"migrations", "indexes", "backups", "nextCorrection"} <= troubled
    finally:
        market.execute("DROP OWNED BY {0}; DROP ROLE {0}", role)
