"""The reverse proxy as it is deployed: a real nginx with TLS before a real API."""

import datetime as dt
import http.server
import re
import socket
import ssl
import subprocess
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline.model.token import Role
from assetclass_pipeline.settings import load_settings
from assetclass_pipeline_tests.api.service import make_token, serving
from assetclass_pipeline_tests.conftest import fresh_database
from assetclass_pipeline_tests.debian import find_programs
from assetclass_pipeline_tests.market import Market, open_market
from assetclass_pipeline_tests.ports import free_port

DEPLOY = Path(__file__).parents[2] / "deploy" / "proxy"
API, DAGSTER = "api.example.com", "dagster.example.com"
SESSION = "_oauth2_proxy=somebody"


class Upstream(http.server.BaseHTTPRequestHandler):
    """Stands for oauth2-proxy and for Dagster's web page: says what it was asked."""

    def do_GET(self) -> None:
        known = SESSION in self.headers.get("Cookie", "")
        asked = self.path == "/oauth2/auth"
        self.send_response(HTTPStatus.UNAUTHORIZED if asked and not known else HTTPStatus.OK)
        if asked and known:
            self.send_header("Set-Cookie", f"{SESSION}; Path=/; Secure; HttpOnly")
        for name in ("Host", "X-Forwarded-For", "X-Forwarded-Proto", "X-Auth-Request-Redirect"):
            self.send_header(f"Seen-{name}", str(self.headers.get(name)))
        said = f"{self.path} {self.headers.get('Upgrade')} {self.headers.get('Connection')}"
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        """Nothing is logged."""


@contextmanager
def upstream() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True)
class Proxy:
    """A running nginx; a client of it believes the certificate and finds the names here."""

    port: int
    plain_port: int
    certificate: Path

    def ask(self, host: str, path: str, **options: object) -> httpx.Response:
        trusted = ssl.create_default_context(cafile=self.certificate)
        with httpx.Client(verify=trusted, trust_env=False, timeout=30) as client:
            headers = {"Host": host} | dict(options.pop("headers", {}))  # type: ignore[call-overload]
            return client.request(
                str(options.pop("method", "GET")),
                f"https://127.0.0.1:{self.port}{path}",
                headers=headers,
                extensions={"sni_hostname": host},
                **options,  # type: ignore[arg-type]
            )


def make_certificate(directory: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, API)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(API), x509.DNSName(DAGSTER)]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, secret = directory / "tls.pem", directory / "tls.key"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return pem, secret


def configure(directory: Path, ports: dict[str, int], tls: tuple[Path, Path]) -> Path:
    """The configuration as it is deployed, with other ports, certificates and directories."""
    text = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    for found, put in {
        "listen 80;": f"listen 127.0.0.1:{ports['plain']};",
        "listen 443 ssl": f"listen 127.0.0.1:{ports['tls']} ssl",
        "127.0.0.1:8000": f"127.0.0.1:{ports['api']}",
        "127.0.0.1:3000": f"127.0.0.1:{ports['webserver']}",
        "127.0.0.1:4180": f"127.0.0.1:{ports['login']}",
        f"/etc/assetclass/tls/{API}.pem": str(tls[0]),
        f"/etc/assetclass/tls/{API}.key": str(tls[1]),
        f"/etc/assetclass/tls/{DAGSTER}.pem": str(tls[0]),
        f"/etc/assetclass/tls/{DAGSTER}.key": str(tls[1]),
    }.items():
        assert found in text
        text = text.replace(found, put)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    own = "".join(f"{kind}_temp_path {directory}/{kind};\n" for kind in kinds)
    text = text.replace("http {\n", f"http {{\n{own}", 1)
    file = directory / "nginx.conf"
    file.write_text(
        f"daemon off;\npid {directory}/pid;\nerror_log {directory}/error.log;\n{text}",
        encoding="utf-8",
    )
    return file


@pytest.fixture(scope="module")
def market(postgres_server: EmbeddedServer) -> Iterator[Market]:
    with fresh_database(postgres_server, with_schema=True) as dsn, open_market(dsn) as made:
        yield made


@pytest.fixture(scope="module")
def proxy(market: Market, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    nginx = find_programs("nginx", "nginx")["nginx"]
    directory = tmp_path_factory.mktemp("nginx")
    tls = make_certificate(directory)
    with serving(market.dsn) as api, upstream() as page, upstream() as login:
        ports = {"tls": free_port(), "plain": free_port(), "webserver": page, "login": login}
        ports["api"] = int(api.url.rpartition(":")[2])
        file = configure(directory, ports, tls)
        command = [str(nginx), "-p", str(directory), "-e", str(directory / "error.log")]
        checked = subprocess.run(
            [*command, "-t", "-c", str(file)], capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stderr
        with subprocess.Popen([*command, "-c", str(file)]) as process:
            try:
                wait_for_port(ports["tls"], process)
                yield Proxy(ports["tls"], ports["plain"], tls[0])
            finally:
                process.terminate()


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("nginx does not listen")


class TestApi:
    """api.example.com"""

    HEALTH = "/api/etl/asset-class-correction/health"

    def test_answers_through_tls(self, proxy: Proxy, market: Market) -> None:
        token = make_token(market.dsn, Role.VIEWER)
        answer = proxy.ask(
            API,
            "/api/etl/asset-class-correction/status",
            headers={"Authorization": f"Bearer {token}"},
        )
        assert answer.status_code == HTTPStatus.OK
        assert answer.json()["success"] is True
        assert "max-age" in answer.headers["Strict-Transport-Security"]

    def test_wants_a_token_here_too(self, proxy: Proxy) -> None:
        answer = proxy.ask(API, "/api/etl/asset-class-correction/status")
        assert answer.status_code == HTTPStatus.UNAUTHORIZED

    def test_without_tls_is_sent_there(self, proxy: Proxy) -> None:
        answer = httpx.get(
            f"http://127.0.0.1:{proxy.plain_port}{self.HEALTH}",
            headers={"Host": API},
            trust_env=False,
        )
        assert answer.status_code == HTTPStatus.PERMANENT_REDIRECT
        assert answer.headers["Location"] == f"https://{API}{self.HEALTH}"

    def test_large_bodies_end_here(self, proxy: Proxy) -> None:
        answer = proxy.ask(
            API, "/api/etl/asset-class-correction/execute", method="POST", content=b"x" * 70_000
        )
        assert answer.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE

    def test_a_scan_is_ended_by_the_api_and_not_by_the_proxy(self) -> None:
        text = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
        shortest = min(int(seconds) for seconds in re.findall(r"proxy_read_timeout (\d+)s;", text))
        assert shortest > load_settings().api.scan_deadline

    def test_metrics_stay_inside(self, proxy: Proxy) -> None:
        assert proxy.ask(API, "/metrics").status_code == HTTPStatus.NOT_FOUND


class TestWebPage:
    """dagster.example.com"""

    def test_strangers_are_sent_to_the_login(self, proxy: Proxy) -> None:
        answer = proxy.ask(DAGSTER, "/runs?status=FAILURE&job=correction_job")
        assert answer.text.startswith("/oauth2/sign_in ")
        wanted = f"https://{DAGSTER}/runs?status=FAILURE&job=correction_job"
        assert answer.headers["Seen-X-Auth-Request-Redirect"] == wanted

    @pytest.mark.parametrize("path", ["/runs", "/oauth2/callback"])
    def test_what_stands_behind_sees_who_asked_for_what(self, proxy: Proxy, path: str) -> None:
        answer = proxy.ask(DAGSTER, path, headers={"Cookie": SESSION})
        seen = [answer.headers[f"Seen-{name}"] for name in ("Host", "X-Forwarded-For")]
        assert seen == [DAGSTER, "127.0.0.1"]
        assert answer.headers["Seen-X-Forwarded-Proto"] == "https"

    def test_whoever_is_logged_in_sees_the_page(self, proxy: Proxy) -> None:
        answer = proxy.ask(DAGSTER, "/runs", headers={"Cookie": SESSION})
        assert (answer.status_code, answer.text) == (HTTPStatus.OK, "/runs None None")

    def test_a_renewed_session_reaches_the_browser(self, proxy: Proxy) -> None:
        """Otherwise a refresh token that is good once is spent, and the next look is a login."""
        answer = proxy.ask(DAGSTER, "/runs", headers={"Cookie": SESSION})
        assert answer.headers["Set-Cookie"] == f"{SESSION}; Path=/; Secure; HttpOnly"
        assert "max-age" in answer.headers["Strict-Transport-Security"]

    def test_websockets_pass(self, proxy: Proxy) -> None:
        headers = {"Cookie": SESSION, "Upgrade": "websocket", "Connection": "Upgrade"}
        answer = proxy.ask(DAGSTER, "/graphql", headers=headers)
        assert answer.text == "/graphql websocket upgrade"


def test_login_listens_on_loopback_and_holds_no_secret() -> None:
    login = tomllib.loads((DEPLOY / "oauth2-proxy.cfg").read_text(encoding="utf-8"))
    assert login["http_address"].startswith("127.0.0.1:")
    assert login["cookie_secure"]
    assert login["allowed_groups"]
    assert not {"client_secret", "cookie_secret"} & set(login)
