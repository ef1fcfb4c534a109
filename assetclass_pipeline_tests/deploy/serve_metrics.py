"""The smallest thing that Prometheus can scrape: reads the metrics for each request, with a token.

Run as a program: PORT and TOKEN as arguments, the DSN on standard input; it says when it listens.
"""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.monitoring.exposition import CONTENT_TYPE, daemon_ages, tick_ages
from assetclass_pipeline.monitoring.metrics import collect, exposition
from assetclass_pipeline.settings import load_settings


def serve(port: int, token: str, dsn: str) -> None:
    settings = load_settings()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Authorization") != f"Bearer {token}" or self.path != "/metrics":
                self.send_error(401)
                return
            with connect(dsn, settings, purpose="metrics") as connection:
                found = collect(connection, settings)
            extra = [daemon_ages({"SENSOR": 1.5, "SCHEDULER": 2.5}), tick_ages({"alerts": 30.0})]
            body = exposition(found, extra)
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with HTTPServer(("127.0.0.1", port), Handler) as server:
        sys.stdout.write(f"{server.server_port}\n")
        sys.stdout.flush()
        server.serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2], sys.stdin.readline().strip())
