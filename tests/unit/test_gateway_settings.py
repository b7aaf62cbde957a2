"""gateway.settings: a bad value stops the start with one line that names the variable, and never shows the value."""

from ipaddress import ip_network
from pathlib import Path

import pytest

from gateway.settings import GatewaySettings
from schemas import kafka

SECRET = "hunter2-do-not-print"


def load(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> GatewaySettings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return GatewaySettings.load()


def test_defaults_load_without_a_word(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    settings = load(monkeypatch, {})
    assert settings.event_bytes_max == 262_144
    assert capsys.readouterr() == ("", "")


def test_every_setting_has_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "host": "0.0.0.0",
        "port": 9,
        "workers": 2,
        "registry_file": Path("/etc/r.toml"),
        "event_bytes_max": 2048,
        "request_bytes_max": 4096,
        "request_events_max": 7,
        "batch_bytes_max": 20_000,
        "pending_bytes_max": 2_000_000,
        "publish_deadline_ms": 10,
        "spool_dir": Path("/spool"),
        "spool_bytes_max": 1_000_000,
        "spool_age_s_max": 60,
        "replay_records_per_s": 1,
        "shutdown_deadline_ms": 100,
        "kafka_bootstrap_servers": "a:1,b:2",
        "kafka_security_protocol": "SASL_PLAINTEXT",
        "kafka_ssl_ca_file": Path("/ca"),
        "kafka_ssl_cert_file": Path("/cert"),
        "kafka_ssl_key_file": Path("/key"),
        "kafka_sasl_mechanism": "SCRAM-SHA-512",
        "kafka_sasl_username": "u",
        "log_level": "debug",
    }
    settings = load(
        monkeypatch,
        {f"GATEWAY_{n.upper()}": str(v) for n, v in values.items()}
        | {
            "GATEWAY_KAFKA_SASL_PASSWORD": SECRET,
            "GATEWAY_PRIVACY_HMAC_KEY": SECRET * 2,
            "GATEWAY_TRUSTED_PROXIES": "10.0.0.0/8, ::1",
        },
    )
    others = {"kafka_sasl_password", "privacy_hmac_key", "trusted_proxies"}
    assert settings.model_dump(exclude=others) == values
    assert settings.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("::1/128"))
    assert settings.privacy_hmac_key is not None
    assert settings.privacy_hmac_key.get_secret_value() == SECRET * 2
    assert settings.kafka_sasl_password is not None
    assert settings.kafka_sasl_password.get_secret_value() == SECRET


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", SECRET),
        ("SPOOL_BYTES_MAX", "999999"),
        ("SPOOL_AGE_S_MAX", "59"),
        ("REPLAY_RECORDS_PER_S", "0"),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "80.5"),
        ("WORKERS", "0"),
        ("WORKERS", "257"),
        ("EVENT_BYTES_MAX", "1023"),
        ("EVENT_BYTES_MAX", "1048577"),
        ("EVENT_BYTES_MAX", "256KiB"),
        ("BATCH_BYTES_MAX", "16383"),
        ("PENDING_BYTES_MAX", "999999"),
        ("PUBLISH_DEADLINE_MS", "9"),
        ("PUBLISH_DEADLINE_MS", "1.5s"),
        ("SHUTDOWN_DEADLINE_MS", "-1"),
        ("LOG_LEVEL", SECRET),
        ("LOG_LEVEL", "INFO"),
        ("KAFKA_SECURITY_PROTOCOL", SECRET),
        ("KAFKA_SASL_MECHANISM", SECRET),
        ("KAFKA_BOOTSTRAP_SERVERS", SECRET),
        ("KAFKA_BOOTSTRAP_SERVERS", "broker:kafka"),
        ("KAFKA_BOOTSTRAP_SERVERS", "broker:0"),
        ("KAFKA_BOOTSTRAP_SERVERS", "broker:65536"),
        ("KAFKA_BOOTSTRAP_SERVERS", ":9092"),
        ("KAFKA_BOOTSTRAP_SERVERS", "a:9092,,b:9092"),
        ("KAFKA_BOOTSTRAP_SERVERS", "a:9092,"),
        ("KAFKA_BOOTSTRAP_SERVERS", f"a:9092,{SECRET}:"),
    ],
)
def test_bad_value(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        load(monkeypatch, {f"GATEWAY_{variable}": value})
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.splitlines()
    assert line.startswith(f"GATEWAY_{variable}: ")
    assert SECRET not in line
    assert value not in line or len(value) < 4  # "0" is in many a sentence


def test_every_bad_value_has_its_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load(monkeypatch, {"GATEWAY_PORT": "x", "GATEWAY_WORKERS": "0", "GATEWAY_LOG_LEVEL": "loud"})
    names = [line.split(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert sorted(names) == ["GATEWAY_LOG_LEVEL", "GATEWAY_PORT", "GATEWAY_WORKERS"]


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"BATCH_BYTES_MAX": "2000000", "PENDING_BYTES_MAX": "1000000"}, ["batch_bytes_max", "pending_bytes_max"]),
        (
            {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"},
            ["kafka_security_protocol", "kafka_sasl_username", "kafka_sasl_password"],
        ),
        ({"KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT", "KAFKA_SASL_PASSWORD": SECRET}, ["kafka_sasl_username"]),
        ({"KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT", "KAFKA_SASL_USERNAME": "u"}, ["kafka_sasl_password"]),
    ],
    ids=["batch-pending", "sasl-nothing", "sasl-no-username", "sasl-no-password"],
)
def test_relation_names_both_sides(
    variables: dict[str, str],
    named: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        load(monkeypatch, {f"GATEWAY_{name}": value for name, value in variables.items()})
    assert caught.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("GATEWAY_")
    assert all(name in line for name in named)
    assert SECRET not in line


@pytest.mark.parametrize(
    "servers", ["broker:9092", "a:1,b:65535", " a:1 , b:2 ", "[::1]:9092", "10.0.0.1:9092"], ids=repr
)
def test_brokers(servers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, {"GATEWAY_KAFKA_BOOTSTRAP_SERVERS": servers}).kafka_bootstrap_servers == servers


def test_empty_variable_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, {"GATEWAY_PORT": ""}).port == 8000


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("GATEWAY_PROT", "GATEWAY_PORT"), ("GATEWAY_KAFKA_PASSWORD", None), ("GATEWAY_ZZZZZ", "")],
)
def test_misspelt_variable_is_warned_of(
    misspelt: str, meant: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load(monkeypatch, {misspelt: SECRET})
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.splitlines()
    assert line.startswith(f"{misspelt} is not a setting")
    if meant is not None:
        assert (f"did you mean {meant}?" in line) is bool(meant)
    assert SECRET not in line


def test_secret_is_hidden_in_every_text_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, {"GATEWAY_KAFKA_SASL_PASSWORD": SECRET})
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        GatewaySettings().port = 1


@pytest.mark.parametrize(
    ("variables", "options"),
    [
        ({}, {"bootstrap_servers": "127.0.0.1:9092", "security_protocol": "PLAINTEXT"}),
        (
            {
                "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
                "KAFKA_SASL_USERNAME": "u",
                "KAFKA_SASL_PASSWORD": SECRET,
                "KAFKA_SASL_MECHANISM": "SCRAM-SHA-256",
            },
            {
                "bootstrap_servers": "127.0.0.1:9092",
                "security_protocol": "SASL_PLAINTEXT",
                "sasl_mechanism": "SCRAM-SHA-256",
                "sasl_plain_username": "u",
                "sasl_plain_password": SECRET,
            },
        ),
    ],
    ids=["plaintext", "sasl"],
)
def test_kafka_options(variables: dict[str, str], options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, {f"GATEWAY_{name}": value for name, value in variables.items()})
    assert kafka.connection(settings) == options


def test_tls_checks_the_brokers_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, {"GATEWAY_KAFKA_SECURITY_PROTOCOL": "SSL"})
    context = kafka.connection(settings)["ssl_context"]
    assert context.check_hostname
    assert context.verify_mode.name == "CERT_REQUIRED"


@pytest.mark.parametrize("content", [None, "not a certificate"], ids=["missing", "no-certificate"])
@pytest.mark.parametrize("setting", ["kafka_ssl_ca_file", "kafka_ssl_cert_file"])
def test_unusable_certificate_names_its_setting_not_its_path(
    setting: str, content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"{SECRET}.pem"
    if content is not None:
        path.write_text(content)
    settings = load(monkeypatch, {"GATEWAY_KAFKA_SECURITY_PROTOCOL": "SSL", f"GATEWAY_{setting.upper()}": str(path)})
    with pytest.raises(kafka.UnusableCertificate) as caught:
        kafka.connection(settings)
    assert caught.value.setting == setting
    assert SECRET not in str(caught.value)
