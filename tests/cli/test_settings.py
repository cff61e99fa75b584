from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from sandgate.settings import Settings, SettingsError, load_settings

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("SANDGATE_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr("sandgate.settings.DEFAULT_CONFIG", tmp_path / "default.toml")


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_without_file_and_variables_the_defaults_hold() -> None:
    settings = load_settings()
    assert settings.domain == "sandgate.localhost"
    assert settings.listen == IPv4Address("127.0.0.1")
    assert settings.https_port is None
    assert settings.ingress_address == IPv4Address("198.18.0.1")
    assert settings.gateway_address == IPv4Address("198.18.0.2")


def test_a_variable_wins_over_the_file_and_the_file_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = written(tmp_path / "c.toml", 'domain = "file.example"\nmemory_mb = 128\n')
    assert load_settings(config).domain == "file.example"
    monkeypatch.setenv("SANDGATE_DOMAIN", "variable.example")
    settings = load_settings(config)
    assert settings.domain == "variable.example"
    assert settings.memory_mb == 128
    assert settings.cpu_count == 2


def test_the_file_is_the_one_that_is_named_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "default.toml", 'domain = "default.example"')
    assert load_settings().domain == "default.example"
    by_variable = written(tmp_path / "variable.toml", 'domain = "variable.example"')
    monkeypatch.setenv("SANDGATE_CONFIG", str(by_variable))
    assert load_settings().domain == "variable.example"
    named = written(tmp_path / "named.toml", 'domain = "named.example"')
    assert load_settings(named).domain == "named.example"


@pytest.mark.parametrize("value", ["1.1.1.1, 9.9.9.9", "1.1.1.1,9.9.9.9,"])
def test_lists_are_written_with_commas_in_variables(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("SANDGATE_UPSTREAM_DNS", value)
    assert load_settings().upstream_dns == (IPv4Address("1.1.1.1"), IPv4Address("9.9.9.9"))


def test_lists_are_lists_in_the_file(tmp_path: Path) -> None:
    config = written(tmp_path / "c.toml", 'internal_allow = ["10.1.0.0/16"]')
    assert load_settings(config).internal_allow == (IPv4Network("10.1.0.0/16"),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("htps_port = 443", r"htps_port = 443: .*no such key.*correct its name"),
        ('internal_allow = ["10.0.0.1/8"]', r"'10\.0\.0\.1/8'.*address would be 10\.0\.0\.0/8"),
        ('internal_allow = ["ten"]', r"internal_allow = 'ten'.*write an IPv4 range like"),
        ('listen = "::1"', r"listen = '::1'.*write an IPv4 address"),
        ('address_range = "198.18.0.0/8"', r"address_range = .*network address would be"),
        ('address_range = "10.0.0.0/8"', r"address_range = '10\.0\.0\.0/8': write a range between"),
        ('address_range = "8.8.0.0/16"', r"'8\.8\.0\.0/16': write .*198\.18\.0\.0/15.*8\.8\.8\.8"),
        (
            'address_range = "172.0.0.0/12"',
            r"address_range = '172\.0\.0\.0/12': write a range within",
        ),
        ('address_range = "192.168.0.0/12"', r"address_range = .*network address would be"),
        ("https_port = 0", r"https_port = 0: .*greater than or equal to 1"),
        ("https_port = 65536", r"https_port = 65536: .*less than or equal to 65535"),
        ('domain = "localhost"', r"domain = 'localhost': write a DNS name of at least two labels"),
        ('domain = "https://a.example"', r"domain = 'https://a\.example': write a DNS name"),
        ('domain = "a.example:8443"', r"domain = 'a\.example:8443'.*without scheme or port"),
        ('data_dir = "relative"', r"data_dir = .*relative.*write an absolute path"),
        ('memory_mb = "lots"', r"memory_mb = 'lots': .*integer"),
        ('tls_cert = "c.pem"\ntls_key = "/k"', r"tls_cert = .*'c\.pem'.*write an absolute path"),
        ('tls_cert = "/c.pem"', r"tls_cert and tls_key go together: set both or neither"),
        ("max_timeout = 60", r"default_timeout \(300\) is above max_timeout \(60\): lower"),
        ("domain = ", r"c\.toml is not valid TOML"),
    ],
)
def test_a_bad_setting_is_refused_with_key_value_and_remedy(
    tmp_path: Path, text: str, said: str
) -> None:
    config = written(tmp_path / "c.toml", text)
    with pytest.raises(SettingsError) as caught:
        load_settings(config)
    assert re.search(said, str(caught.value)), str(caught.value)
    assert str(config) in str(caught.value)


def test_every_wrong_key_is_reported_at_once(tmp_path: Path) -> None:
    config = written(tmp_path / "c.toml", "memory_mb = 1\ncpu_count = 0\nfoo = 1\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(config)
    assert all(key in str(caught.value) for key in ("memory_mb", "cpu_count", "foo"))


def test_a_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDGATE_INTERNAL_ALOW", "10.0.0.0/8")
    with pytest.raises(SettingsError, match="SANDGATE_INTERNAL_ALOW"):
        load_settings()


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.toml does not exist"):
        load_settings(tmp_path / "missing.toml")


@pytest.mark.parametrize(
    "value", ["10.0.0.0/12", "172.16.0.0/12", "192.168.7.0/24", "100.64.0.0/16", "198.19.0.0/16"]
)
def test_private_ranges_are_taken(tmp_path: Path, value: str) -> None:
    config = written(tmp_path / "c.toml", f'address_range = "{value}"')
    assert load_settings(config).address_range == IPv4Network(value)


def test_settings_travel_as_json() -> None:
    settings = Settings(domain="a.example", upstream_dns=(IPv4Address("1.1.1.1"),))
    assert Settings.model_validate(settings.model_dump(mode="json")) == settings


def test_the_documentation_describes_every_key_as_the_settings_do() -> None:
    text = DOCS.read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.M))
    assert list(rows) == list(Settings.model_fields)
    for key, field in Settings.model_fields.items():
        default = "unset" if field.default in (None, ()) else f"`{field.default}`"
        assert rows[key] == f"{default} | {' '.join((field.description or '').split())}", key
