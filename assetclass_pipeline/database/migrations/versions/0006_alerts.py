"""Alerts and their notifications, maintenance windows, and how far each watcher has looked."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_UP = (
    """
    CREATE TABLE assetclass.alert (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        cause text NOT NULL,
        alert_type text NOT NULL,
        severity text NOT NULL CHECK (severity IN ('high', 'medium', 'low')),
        status text NOT NULL CHECK (status IN ('open', 'acknowledged', 'resolved')),
        summary text NOT NULL,
        details jsonb NOT NULL DEFAULT '{}',
        correction_id uuid,
        run_id text,
        opened_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        last_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        occurrences integer NOT NULL DEFAULT 1,
        times_reopened integer NOT NULL DEFAULT 0,
        level smallint NOT NULL DEFAULT 1,
        notified_at timestamptz,
        acknowledged_at timestamptz,
        acknowledged_by text,
        snoozed_until timestamptz,
        resolved_at timestamptz
    )
    """,
    """
    COMMENT ON TABLE assetclass.alert IS
    'what people must know of: one row per cause while it holds, for ever afterwards'
    """,
    """
    COMMENT ON COLUMN assetclass.alert.cause IS
    'what is wrong and with what; everything that happens for the same cause is counted into one'
    """,
    """
    COMMENT ON COLUMN assetclass.alert.level IS
    'how far it was escalated: 1 is whoever is on call, higher ones were called since'
    """,
    """
    COMMENT ON COLUMN assetclass.alert.notified_at IS
    'when somebody was last told, or rather when that was put into assetclass.notification'
    """,
    """
    CREATE UNIQUE INDEX alert_one_of_a_cause ON assetclass.alert (cause)
    WHERE status <> 'resolved'
    """,
    "CREATE INDEX alert_of_cause ON assetclass.alert (cause, id DESC)",
    "CREATE INDEX alert_newest ON assetclass.alert (opened_at DESC)",
    """
    CREATE TABLE assetclass.alert_event (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        alert_id bigint NOT NULL REFERENCES assetclass.alert,
        happened_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        event text NOT NULL,
        actor text NOT NULL,
        details jsonb NOT NULL DEFAULT '{}'
    )
    """,
    """
    COMMENT ON TABLE assetclass.alert_event IS
    'the life of each alert: one row per change, never changed; mere repeats are only counted'
    """,
    "CREATE INDEX alert_event_of_alert ON assetclass.alert_event (alert_id, id)",
    """
    CREATE TABLE assetclass.notification (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        alert_id bigint REFERENCES assetclass.alert,
        occasion text NOT NULL,
        channel text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        due_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        attempts integer NOT NULL DEFAULT 0,
        delivered_at timestamptz,
        dropped_at timestamptz,
        last_error text,
        title text,
        body text,
        UNIQUE (alert_id, occasion, channel)
    )
    """,
    """
    COMMENT ON TABLE assetclass.notification IS
    'messages to people: one row per occasion and channel, waiting, delivered or dropped'
    """,
    """
    COMMENT ON COLUMN assetclass.notification.occasion IS
    'opened, reopened 2, reminder 3, resolved 1, ...; each is told once on a channel'
    """,
    """
    COMMENT ON COLUMN assetclass.notification.due_at IS
    'not before; whoever tries to deliver it moves this on first, so that nobody else does'
    """,
    """
    COMMENT ON COLUMN assetclass.notification.dropped_at IS
    'when it was given up: its alert ended before anybody was told, or all tries failed'
    """,
    """
    CREATE INDEX notification_waiting ON assetclass.notification (due_at)
    WHERE delivered_at IS NULL AND dropped_at IS NULL
    """,
    """
    CREATE TABLE assetclass.maintenance_window (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        starts_at timestamptz NOT NULL,
        ends_at timestamptz NOT NULL CHECK (ends_at >= starts_at),
        alert_types text[],
        reason text NOT NULL,
        created_by text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
    """
    COMMENT ON TABLE assetclass.maintenance_window IS
    'when nobody is told of alerts (of alert_types, or of any where NULL); they open all the same'
    """,
    "CREATE INDEX maintenance_window_ends ON assetclass.maintenance_window (ends_at)",
    """
    CREATE TABLE assetclass.watch_position (
        watcher text NOT NULL,
        source text NOT NULL,
        position bigint NOT NULL,
        moved_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (watcher, source)
    )
    """,
    """
    COMMENT ON TABLE assetclass.watch_position IS
    'the last event that a watcher has judged; it moves in the transaction that stores the alerts, '
    'so that none is lost or repeated'
    """,
    """
    COMMENT ON COLUMN assetclass.watch_position.source IS
    'whose events they are, such as one storage of Dagster: its numbers mean nothing in another'
    """,
)


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    for table in (
        "watch_position",
        "maintenance_window",
        "notification",
        "alert_event",
        "alert",
    ):
        op.execute(f"DROP TABLE assetclass.{table}")
