"""JWTs of an identity provider: which are believed, with real keys and a real server of them."""

import base64
import hmac
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import RSAAlgorithm

from assetclass_pipeline.api.oidc import Oidc
from assetclass_pipeline.errors import IdentityProviderError, UnauthorizedError
from assetclass_pipeline.model.audit import Actor
from assetclass_pipeline.model.token import Role
from assetclass_pipeline.settings import OidcSettings
from assetclass_pipeline_tests.api.service import (
    LONGEST,
    Service,
    audit_entries,
    make_token,
    serving,
)
from assetclass_pipeline_tests.market import Market

ISSUER, AUDIENCE = "https://login.example", "assetclass"


def new_key() -> RSAPrivateKey:
    return generate_private_key(public_exponent=65_537, key_size=2048)


@dataclass
class Provider:
    """An identity provider: keys by their id, and how often they were fetched."""

    keys: dict[str, RSAPrivateKey]
    url: str = ""
    broken: bool = False
    instead: bytes | None = None
    """What comes in place of the keys; where it is empty, the answer is cut off."""
    fetched: int = 0
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def document(self) -> bytes:
        with self._guard:
            self.fetched += 1
        public = [
            {**json.loads(RSAAlgorithm.to_jwk(key.public_key())), "kid": kid, "use": "sig"}
            for kid, key in self.keys.items()
        ]
        return json.dumps({"keys": public}).encode()

    def token(self, kid: str = "one", key: RSAPrivateKey | None = None, **claims: Any) -> str:
        now = int(time.time())
        standard = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "ada",
            "iat": now,
            "exp": now + 300,
            "realm": {"roles": ["assetclass-operator"]},
        }
        chosen = {k: v for k, v in {**standard, **claims}.items() if v is not None}
        return jwt.encode(chosen, key or self.keys[kid], algorithm="RS256", headers={"kid": kid})


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    made = Provider({"one": new_key()})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            document = made.document()
            self.send_response(500 if made.broken else 200)
            if made.instead is not None:
                document = made.instead
                self.send_header("Content-Length", str(len(document) or 1000))
            self.end_headers()
            self.wfile.write(document)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - as its base
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        made.url = f"http://127.0.0.1:{server.server_address[1]}/keys"
        yield made
        server.shutdown()
        thread.join()


def settings_of(provider: Provider, **settings: Any) -> OidcSettings:
    return OidcSettings.model_validate(
        {
            "issuer": ISSUER,
            "audience": AUDIENCE,
            "jwks_url": provider.url,
            "role_claim": "realm.roles",
            "keys_timeout": 2,
            **settings,
        }
    )


@pytest.fixture(scope="module")
def service(market: Market, provider: Provider) -> Iterator[Service]:
    oidc = settings_of(provider).model_dump()
    with serving(market.dsn, api={"oidc": oidc, "failed_logins_per_minute": 1000}) as running:
        yield running


def ask(service: Service, token: str, path: str = "audit/rows/1", method: str = "GET") -> Any:
    return service.ask(method, path, token)


def test_a_jwt_opens_what_its_role_opens(service: Service, provider: Provider) -> None:
    token = provider.token()
    assert ask(service, token).status_code == 404
    assert ask(service, token, "alerts/1/acknowledge", "POST").status_code == 404
    viewer = provider.token(realm={"roles": ["assetclass-viewer"]})
    assert ask(service, viewer).status_code == 404
    assert ask(service, viewer, "alerts/1/acknowledge", "POST").status_code == 403


def test_our_own_tokens_open_too(service: Service, market: Market) -> None:
    assert ask(service, make_token(market.dsn)).status_code == 404


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://elsewhere.example"},
        {"aud": "something-else"},
        {"aud": None},
        {"iss": None},
        {"exp": None},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "a\nb"},
        {"exp": 1_000_000_000},
        {"nbf": 9_999_999_999},
    ],
    ids=str,
)
def test_a_jwt_with_other_claims_opens_nothing(
    service: Service, provider: Provider, claims: dict[str, Any]
) -> None:
    said = ask(service, provider.token(**claims))
    assert (said.status_code, said.json()["errorCode"]) == (401, "UNAUTHORIZED")


@pytest.mark.parametrize(
    "realm", [None, {}, {"roles": []}, {"roles": ["other"]}, {"roles": 7}, {"roles": [["x"]]}, "x"]
)
def test_a_jwt_that_gives_no_role_opens_nothing(
    service: Service, provider: Provider, realm: Any
) -> None:
    said = ask(service, provider.token(realm=realm))
    assert (said.status_code, said.json()["errorCode"]) == (403, "FORBIDDEN")


def test_forged_jwts_open_nothing(service: Service, provider: Provider) -> None:
    good = provider.token()
    head, body, signature = good.split(".")

    def part(content: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()

    # What an attacker can know: the public key, used as a shared secret.
    public = provider.keys["one"].public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    by_hand = f"{part({'alg': 'HS256', 'kid': 'one'})}.{body}"
    mac = hmac.digest(pem, by_hand.encode(), "sha256")
    forged = [
        provider.token(key=new_key()),
        provider.token(kid="unknown", key=new_key()),
        f"{part({'alg': 'none', 'kid': 'one'})}.{body}.{signature}",
        f"{head}.{part({'sub': 'eve'})}.{signature}",
        f"{head}.{body}.{'A' * len(signature)}",
        f"{by_hand}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}",
        f"{part({'alg': 'RS256', 'kid': ['one']})}.{body}.{signature}",
        f"{part({'alg': 'RS256'})}.{body}.{signature}",
        f"{part([])}.{body}.{signature}",
        "a.b.c",
        good[:-10],
        "x" * 5000 + "." + "y" * 5000 + ".z",
    ]
    assert {ask(service, token).status_code for token in forged} == {401}


def test_clocks_may_differ_a_little(service: Service, provider: Provider) -> None:
    assert ask(service, provider.token(exp=int(time.time()) - 20)).status_code == 404
    assert ask(service, provider.token(exp=int(time.time()) - 40)).status_code == 401


def test_several_roles_give_the_highest(provider: Provider) -> None:
    oidc = Oidc(settings_of(provider))
    both = {"roles": ["assetclass-viewer", "assetclass-admin", "something"]}
    found = oidc.identify(provider.token(realm=both))
    assert (found.actor, found.role) == (Actor.token("oidc:ada"), Role.ADMIN)
    mapped = Oidc(settings_of(provider, role_claim="groups", roles={"dba": "admin"}))
    assert mapped.identify(provider.token(groups="dba")).role is Role.ADMIN


def test_a_claim_whose_name_is_an_address_is_found(provider: Provider) -> None:
    """As identity providers name claims of one's own: its dots lead nowhere."""
    named = "https://login.example/roles"
    oidc = Oidc(settings_of(provider, role_claim=named))
    claims: dict[str, Any] = {named: "assetclass-admin", "realm.roles": "assetclass-viewer"}
    assert oidc.identify(provider.token(**claims)).role is Role.ADMIN
    as_it_stands = Oidc(settings_of(provider, role_claim="realm.roles"))
    assert as_it_stands.identify(provider.token(**claims)).role is Role.VIEWER


def test_keys_are_fetched_once_and_again_for_a_new_one(provider: Provider) -> None:
    oidc = Oidc(settings_of(provider))
    before = provider.fetched
    for _ in range(3):
        oidc.identify(provider.token())
    assert provider.fetched == before + 1
    for _ in range(3):
        with pytest.raises(UnauthorizedError):
            oidc.identify(provider.token(kid="made-up", key=new_key()))
    assert provider.fetched <= before + 2


def test_while_the_provider_is_away_callers_are_told_and_nobody_waits(
    provider: Provider,
) -> None:
    oidc = Oidc(settings_of(provider, jwks_url="http://127.0.0.1:1/keys"))
    for _ in range(3):
        with pytest.raises(IdentityProviderError, match="identity provider"):
            oidc.identify(provider.token())
    provider.broken = True
    try:
        answering_nonsense = Oidc(settings_of(provider))
        before = provider.fetched
        for _ in range(3):
            with pytest.raises(IdentityProviderError):
                answering_nonsense.identify(provider.token())
        assert provider.fetched == before + 1
    finally:
        provider.broken = False


@pytest.mark.parametrize("instead", [b"<html>Sign in</html>", b"[]", b"\xff", b"", b'{"keys": []}'])
def test_what_comes_in_place_of_keys_is_no_fault_of_the_caller(
    provider: Provider, instead: bytes
) -> None:
    """Else good tokens would be called bad, and too many of them would shut their sender out."""
    oidc = Oidc(settings_of(provider))
    provider.instead = instead
    try:
        before = provider.fetched
        for _ in range(3):
            with pytest.raises(IdentityProviderError):
                oidc.identify(provider.token())
        assert provider.fetched == before + 1
    finally:
        provider.instead = None


def test_health_is_told_while_the_provider_is_away(provider: Provider, market: Market) -> None:
    oidc = settings_of(provider, jwks_url="http://127.0.0.1:1/keys").model_dump()
    with serving(market.dsn, api={"oidc": oidc}, health={"timeout": LONGEST}) as service:
        said = ask(service, provider.token(), "health").json()
    assert said["data"]["components"] is None
    assert said["errorCode"] in {None, "SERVICE_UNHEALTHY"}


def test_the_audit_log_knows_who_it_was(
    service: Service, provider: Provider, market: Market
) -> None:
    said = ask(
        service,
        provider.token(realm={"roles": ["assetclass-viewer"]}, sub="grace"),
        "alerts/1/acknowledge",
        "POST",
    )
    assert said.status_code == 403
    deadline = time.monotonic() + 10
    while not [e for e in audit_entries(market.dsn, "call_api") if e["actor"] == "oidc:grace"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("wrong", [{"algorithms": ["HS256"]}, {"jwks_url": "file:///etc/passwd"}])
def test_settings_refuse_what_is_not_safe(provider: Provider, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"algorithms|jwks_url"):
        settings_of(provider, **wrong)
