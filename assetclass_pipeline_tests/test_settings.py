"""Settings from the environment: what cannot be used is named, and no secret is repeated."""

import pytest

from assetclass_pipeline.errors import InvalidSettingsError
from assetclass_pipeline.settings import load_settings


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ASSETCLASS_API__TRUSTED_PROXIES", "192.0.2.7"),
        ("ASSETCLASS_API__CORS_ORIGINS", "https://ours.example"),
        ("ASSETCLASS_ALERTS__CHANNELS", "slack://s3cret/s3cret/s3cret"),
        ("ASSETCLASS_THRESHOLDS", "{'completeness': 97}"),
    ],
)
def test_a_list_that_is_no_json_is_named_with_the_way_to_write_it(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidSettingsError) as caught:
        load_settings()
    said = str(caught.value)
    assert f"\n  {variable}: " in said
    assert """'["127.0.0.1"]'""" in said
    assert value not in said


def test_single_sign_on_is_set_by_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ISSUER": "https://login.example",
        "AUDIENCE": "assetclass",
        "JWKS_URL": "https://login.example/keys",
        "ROLE_CLAIM": "realm_access.roles",
        "ROLES": '{"data-operators": "operator", "Data-Admins": "admin"}',
    }.items():
        monkeypatch.setenv(f"ASSETCLASS_API__OIDC__{name}", value)
    oidc = load_settings().api.oidc
    assert oidc is not None
    assert oidc.roles == {"data-operators": "operator", "Data-Admins": "admin"}
