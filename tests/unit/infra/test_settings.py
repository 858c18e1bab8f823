"""Settings: what is given is what counts, a mistake is named at start, a secret is never shown."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from infra.settings import (
    PREFIX,
    Settings,
    SettingsError,
    environment_of,
    load_settings,
    parse_addresses,
    parse_api_keys,
    parse_webhook_schedule,
    parse_webhook_secrets,
)

WEBHOOK_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SECRETS = {
    "KAFKA_SASL_PASSWORD": "kafka-hunter2",
    "CASSANDRA_PASSWORD": "cassandra-hunter2",
    "WEBHOOK_SECRET": WEBHOOK_SECRET,
    "API_KEYS": "shop:key-hunter2",
}


@pytest.fixture(autouse=True)
def _nothing_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of this machine and no ``.env`` of the checkout."""
    for name in os.environ:
        if name.upper().startswith(PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def give(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(PREFIX + name, value)


def test_with_nothing_given_the_documented_defaults_hold() -> None:
    settings = load_settings()
    assert (settings.quality, settings.port, settings.host) == (50, 8080, "127.0.0.1")
    assert settings.kafka_brokers is None
    assert settings.cassandra_hosts is None
    assert settings.api_keys is None
    assert settings.effective_public_url == "http://127.0.0.1:8080"
    assert settings.effective_storage_url == (Path.cwd() / ".shrinkstream" / "storage").as_uri()


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, QUALITY="80", KAFKA_BROKERS="one:9092,two:9093", DATA_DIR="/var/lib/shrink", OPEN_NETWORK="true")
    settings = load_settings()
    assert (settings.quality, settings.kafka_brokers, settings.open_network) == (80, "one:9092,two:9093", True)
    assert settings.effective_storage_url == "file:///var/lib/shrink/storage"


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    # `docker compose` passes ${VARIABLE:-} on as an empty one.
    give(monkeypatch, QUALITY="", KAFKA_BROKERS="", WEBHOOK_SECRET="", WEBHOOK_URL="", FETCH_ALLOW="")
    assert load_settings() == Settings()


def test_the_env_file_is_read_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("SHRINKSTREAM_QUALITY=60\nSHRINKSTREAM_PORT=9000\nSOMEBODY_ELSES=1\n")
    give(monkeypatch, QUALITY="auto")
    assert load_settings().quality == "auto"
    give(monkeypatch, QUALITY="70")
    settings = load_settings()
    assert (settings.quality, settings.port) == (70, 9000)


def test_an_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, PORT="9000")
    assert load_settings(port=9001).port == 9001


@pytest.mark.parametrize("name", ["SHRINKSTREAM_QUALTY", "shrinkstream_qualty", "SHRINKSTREAM_"])
def test_an_unknown_variable_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "60")
    with pytest.raises(SettingsError, match=f"unknown setting {name} "):
        load_settings()


def test_unknown_variable_in_env_file_is_error() -> None:
    Path(".env").write_text("SHRINKSTREAM_QUALTY=60\nSHRINKSTREAM_PRT=1\n")
    with pytest.raises(SettingsError, match="SHRINKSTREAM_PRT, SHRINKSTREAM_QUALTY"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("QUALITY", "high"),
        ("QUALITY", "0"),
        ("QUALITY", "101"),
        ("PORT", "65536"),
        ("PARTITIONS", "0"),
        ("FETCH_TIMEOUT", "-1"),
        ("OPEN_NETWORK", "perhaps"),
        ("TOPIC_PREFIX", "with space"),
        ("CASSANDRA_KEYSPACE", "Drop Table"),
        ("KAFKA_SECURITY_PROTOCOL", "TLS"),
        ("KAFKA_BROKERS", "host:port"),
        ("KAFKA_BROKERS", "one:9092,,two:9092"),
        ("KAFKA_BROKERS", "kafka://one:9092"),
        ("CASSANDRA_HOSTS", "one:99999"),
        ("PUBLIC_URL", "shop.example"),
        ("WEBHOOK_URL", "ftp://shop.example/hook"),
        ("URL", "http://"),
        ("WEBHOOK_SCHEDULE", "0,soon"),
        ("WEBHOOK_SCHEDULE", "0,-1"),
        ("WEBHOOK_SCHEDULE", "nan"),
        ("WEBHOOK_SCHEDULE", "0," * 50 + "0"),
        ("FETCH_ALLOW", "10.0.0.0/33"),
        ("FETCH_ALLOW", "host:port"),
        ("LOG_LEVEL", "loud"),
        ("MAX_UPLOAD_BYTES", "1 GB"),
        ("STORAGE_URL", "ftp://storage"),
        ("STORAGE_URL", "/data"),
        ("STORAGE_URL", "file://data/images"),
        ("STORAGE_URL", "s3://"),
        ("WEBHOOK_URL", "http://user:password@shop.example/hook"),
        ("RETENTION_DAYS", "inf"),
    ],
)
def test_malformed_value_error_names_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    give(monkeypatch, **{name: value})
    with pytest.raises(SettingsError, match=f"^SHRINKSTREAM_{name}: "):
        load_settings()


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}, "KAFKA_SASL_USERNAME"),
        ({"KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT", "KAFKA_SASL_USERNAME": "me"}, "KAFKA_SASL_PASSWORD"),
        ({"CASSANDRA_USERNAME": "me"}, "CASSANDRA_PASSWORD"),
    ],
)
def test_incomplete_setting_error_names_both_variables(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], missing: str
) -> None:
    give(monkeypatch, **given)
    with pytest.raises(SettingsError, match=f"^SHRINKSTREAM_{next(iter(given))}.* needs .*SHRINKSTREAM_{missing}"):
        load_settings()


def test_binary_env_file_is_clear_error() -> None:
    Path(".env").write_bytes("SHRINKSTREAM_URL=http://grün".encode("latin-1"))
    with pytest.raises(SettingsError, match=r"\.env is not in UTF-8"):
        load_settings()


def test_env_file_may_have_bucket_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "of the environment")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    Path(".env").write_text("AWS_REGION=of-the-file\nAWS_ENDPOINT_URL=http://127.0.0.1:9000\n")
    try:
        load_settings()
        assert (os.environ["AWS_REGION"], os.environ["AWS_ENDPOINT_URL"]) == (
            "of the environment",
            "http://127.0.0.1:9000",
        )
    finally:
        os.environ.pop("AWS_ENDPOINT_URL", None)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1:8080"),
        ("0.0.0.0", "127.0.0.1:8080"),
        ("::", "[::1]:8080"),
        ("::1", "[::1]:8080"),
        ("images.example", "images.example:8080"),
    ],
)
def test_this_machine_reaches_the_api_whatever_it_listens_on(host: str, address: str) -> None:
    settings = Settings(host=host)
    assert settings.own_address == address
    assert settings.effective_public_url == f"http://{address}"


def test_all_malformed_variables_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, QUALITY="high", PORT="low")
    with pytest.raises(SettingsError, match=r"SHRINKSTREAM_PORT: .*; SHRINKSTREAM_QUALITY|QUALITY: .*; .*PORT: "):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_KEYS", "shop:hunter2,shop:hunter3"),
        ("API_KEYS", "shop:"),
        ("API_KEYS", ":hunter2"),
        ("API_KEYS", "hunter2,hunter2"),
        ("API_KEYS", "hunter2,,hunter3"),
        ("WEBHOOK_SECRET", "hunter2"),
        ("WEBHOOK_SECRET", "whsec_"),
        ("WEBHOOK_SECRET", "whsec_hunter2!"),
        ("WEBHOOK_SECRET", "whsec_c2VjcmV0,hunter2"),
        ("WEBHOOK_SECRET", ","),
    ],
)
def test_error_does_not_disclose_secret(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    give(monkeypatch, **{name: value})
    with pytest.raises(SettingsError, match=f"^SHRINKSTREAM_{name}: ") as error:
        load_settings()
    assert "hunter" not in str(error.value)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__, "a traceback would show the value"


def test_secrets_are_masked_wherever_the_settings_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, **SECRETS)
    settings = load_settings()
    for text in (repr(settings), str(settings), settings.model_dump_json()):
        assert not [secret for secret in SECRETS.values() if secret in text]
    assert settings.first_api_key == "key-hunter2"


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(load_settings(), "quality", 10)  # noqa: B010 - mypy refuses the statement, as it should


def test_a_child_process_gets_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Settings(
        kafka_brokers="one:9092",
        cassandra_hosts="two:9042",
        data_dir=Path("somewhere"),
        open_network=True,
        fetch_timeout=0.5,
        api_keys=SecretStr(SECRETS["API_KEYS"]),
        webhook_secret=SecretStr(WEBHOOK_SECRET),
        public_url="https://shrink.example/",
        max_upload_bytes=2**40,
        fetch_allow="127.0.0.1,[::1]:8080",
    )
    for name, value in environment_of(given).items():
        monkeypatch.setenv(name, value)
    assert load_settings() == given


def test_the_command_prints_every_setting_and_masks_secrets() -> None:
    environment = {**os.environ, **{PREFIX + name: value for name, value in SECRETS.items()}, f"{PREFIX}QUALITY": "61"}
    environment[f"{PREFIX}FETCH_ALLOW"] = "[fd00::/8]:8080"  # what looks like the markup of a terminal
    shown = subprocess.run(
        [sys.executable, "-m", "infra.cli", "settings"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = {line.split()[0]: line for line in shown.stdout.splitlines() if line.startswith(PREFIX)}
    assert set(lines) == {PREFIX + name.upper() for name in Settings.model_fields}
    assert lines[f"{PREFIX}QUALITY"].split()[1:3] == ["61", "50"]
    assert "[fd00::/8]:8080" in lines[f"{PREFIX}FETCH_ALLOW"]
    for name, secret in SECRETS.items():
        assert "********" in lines[PREFIX + name]
        assert secret.split(":")[-1] not in shown.stdout + shown.stderr


def test_a_mistake_ends_the_command_with_one_line() -> None:
    failed = subprocess.run(
        [sys.executable, "-m", "infra.cli", "settings"],
        env={**os.environ, "SHRINKSTREAM_QUALTY": "60"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert failed.returncode == 1
    assert failed.stdout == ""
    (line,) = failed.stderr.splitlines()
    assert "SHRINKSTREAM_QUALTY" in line


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("one", {"key-7692c3ad3540": "one"}),
        ("shop:one, two ,admin:three", {"shop": "one", "key-3fc4ccfe7458": "two", "admin": "three"}),
        ("name:with:colon", {"name": "with:colon"}),
    ],
)
def test_api_keys_have_names(text: str, keys: dict[str, str]) -> None:
    assert parse_api_keys(text) == keys


def test_unnamed_key_keeps_owner_at_any_position() -> None:
    (name,) = parse_api_keys("old")
    assert parse_api_keys("new,old")[name] == "old"


def test_rate_limit_without_keys_is_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().effective_rate_limit == 0
    give(monkeypatch, API_KEYS="shop:sesame")
    assert load_settings().effective_rate_limit > 0
    give(monkeypatch, RATE_LIMIT="0")
    assert load_settings().effective_rate_limit == 0
    monkeypatch.delenv(f"{PREFIX}API_KEYS")
    give(monkeypatch, RATE_LIMIT="3")
    assert load_settings().effective_rate_limit == 3


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("one", [("one", 9042)]),
        ("one:1, two ", [("one", 1), ("two", 9042)]),
        ("[::1]:9142,[fd00::2]", [("::1", 9142), ("fd00::2", 9042)]),
        ("10.0.0.7:9043", [("10.0.0.7", 9043)]),
    ],
)
def test_addresses_are_hosts_with_or_without_a_port(text: str, addresses: list[tuple[str, int]]) -> None:
    assert parse_addresses(text, default_port=9042) == addresses


@pytest.mark.parametrize("text", ["whsec_bmV3,whsec_b2xk", "whsec_bmV3 whsec_b2xk", " whsec_bmV3,  whsec_b2xk "])
def test_several_webhook_secrets_are_read_in_their_order(text: str) -> None:
    assert parse_webhook_secrets(text) == [b"new", b"old"]


def test_the_webhook_schedule_is_one_of_about_a_day() -> None:
    assert parse_webhook_schedule("0, 0.5,60") == (0, 0.5, 60)
    pauses = parse_webhook_schedule(Settings().webhook_schedule)
    assert 24 < sum(pauses) / 3600 < 36


def test_a_webhook_secret_is_the_base64_of_its_key() -> None:
    assert parse_webhook_secrets("whsec_c2VjcmV0") == [b"secret"]
