"""Settings: environment variables with the prefix ``SHRINKSTREAM_``, also read from ``.env``.

Each field's description is what ``shrinkstream settings`` prints. An unknown or malformed variable is an
error at start that names the variable: a typing mistake must not silently mean "use the default".
"""

import base64
import binascii
import hashlib
import os
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.errors import ExplainedError

PREFIX = "SHRINKSTREAM_"
ENV_FILE = Path(".env")

MIB = 1024 * 1024
MOST_PARTITIONS = 1024
MAX_WEBHOOK_REPEATS = 50
RATE_LIMIT_OF_A_KEY = 200
WEBHOOK_SECRET_PREFIX = "whsec_"  # noqa: S105 - the mark of Standard Webhooks, no secret

_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<host>[^\s:/@\[\],]+))(?::(?P<port>[0-9]{1,5}))?")
_ORIGIN = re.compile(r"https?://[^\s/?#@,A-Z]+")


class SettingsError(ExplainedError):
    """The settings can't be used; the message names each variable and what is wrong with it."""


class Settings(BaseSettings):
    """Everything about a running shrinkstream that may differ between two machines."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="ignore")

    kafka_brokers: str | None = Field(
        None, description="host:port,… of an existing Kafka cluster; unset: the embedded Kafka of `up`"
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="how to talk to the brokers"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "PLAIN", description="SASL mechanism, with a SASL_ security protocol"
    )
    kafka_sasl_username: str | None = Field(None, description="SASL user name")
    kafka_sasl_password: SecretStr | None = Field(None, description="SASL password")
    kafka_ssl_cafile: Path | None = Field(None, description="PEM file of the authority that signed the brokers")
    kafka_ssl_certfile: Path | None = Field(None, description="PEM file of this client's certificate")
    kafka_ssl_keyfile: Path | None = Field(None, description="PEM file of this client's key")
    kafka_replication_factor: int = Field(
        1, ge=1, le=7, description="copies of each partition that `init` asks for (3 on a real cluster)"
    )

    topic_prefix: str = Field(
        "shrinkstream",
        pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,99}$",
        description="prefix of topics and consumer groups, to run two systems on one cluster",
    )
    partitions: int = Field(
        8,
        ge=1,
        le=MOST_PARTITIONS,
        description="partitions of each topic that `init` creates: the limit of scaling out, for ever"
        " (that of compress can grow: `init --partitions`)",
    )

    cassandra_hosts: str | None = Field(
        None, description="host[:port],… of an existing Cassandra; unset: the embedded Cassandra of `up`"
    )
    cassandra_username: str | None = Field(None, description="Cassandra user name")
    cassandra_password: SecretStr | None = Field(None, description="Cassandra password")
    cassandra_tls: bool = Field(False, description="talk TLS to Cassandra")
    cassandra_cafile: Path | None = Field(
        None, description="PEM file of the authority that signed Cassandra's certificates; unset: the system's own"
    )
    cassandra_certfile: Path | None = Field(None, description="PEM file of this client's certificate for Cassandra")
    cassandra_keyfile: Path | None = Field(None, description="PEM file of this client's key for Cassandra")
    cassandra_datacenter: str | None = Field(None, description="local datacenter; unset: that of the first host")
    cassandra_keyspace: str = Field(
        "shrinkstream", pattern=r"^[a-z][a-z0-9_]{0,47}$", description="keyspace of the history tables"
    )

    cassandra_replication_factor: int = Field(
        1,
        ge=1,
        le=7,
        description="copies of each row in a keyspace that `init` creates (3 on a real cluster)",
    )

    data_dir: Path = Field(
        Path(".shrinkstream"),
        description="embedded servers, stored images, spool files and logs of this machine",
    )
    storage_url: str | None = Field(
        None,
        description="where images and output CSVs go: file:///… or s3://bucket/prefix; unset: in the data dir",
    )
    storage_public_url: str | None = Field(
        None,
        description="prefix under which everybody can fetch the stored images, as of a bucket or a CDN before it;"
        " unset: the API serves them",
    )
    storage_redirect: bool = Field(
        False,
        description="answer GET /images/… with a signed link to the s3:// bucket instead of the image itself",
    )
    retention_days: float | None = Field(
        None, gt=0, description="days after which a finished request's images and CSVs are removed; unset: never"
    )
    public_url: str | None = Field(None, description="prefix of every link handed out; unset: the API's own address")
    host: str = Field("127.0.0.1", description="address the API listens on")
    port: int = Field(8080, ge=0, le=65535, description="port the API listens on; 0: any free one")
    worker_host: str = Field("127.0.0.1", description="address at which a worker answers probes and Prometheus")
    worker_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="port at which a worker answers /healthz, /readyz and /metrics; 0: any free one, which its log"
        " tells; unset: none (`up` gives each of its workers one)",
    )
    url: str = Field("http://127.0.0.1:8080", description="server that submit, status and download talk to")

    webhook_url: str | None = Field(None, description="receiver of webhooks for requests that name none")
    webhook_secret: SecretStr | None = Field(
        None, description="whsec_… secret that signs webhooks; several, comma-separated, while it is being changed"
    )
    webhook_schedule: str = Field(
        "5,300,1800,7200,18000,36000,50400",
        description="seconds before each further attempt at a webhook whose receiver didn't confirm; the first is made"
        " at once",
    )
    api_keys: SecretStr | None = Field(
        None,
        description="`key` or `name:key` (after the first colon all is key), comma-separated; unset: open, and only on"
        " loopback",
    )

    open_network: bool = Field(
        False,
        description="serve without API keys on other addresses than loopback and under any name, as behind a proxy with"
        " its own",
    )

    cors_origins: str = Field(
        "",
        description="origins of web pages that may use the API from a browser (https://shop.example), comma-separated,"
        " or *; unset: none",
    )
    rate_limit: float | None = Field(
        None,
        ge=0,
        description="requests per second that each API key (or address, without keys) may make in the long run; 0: any;"
        f" unset: {RATE_LIMIT_OF_A_KEY} with keys, any without",
    )
    rate_limit_burst: int = Field(2000, ge=1, description="requests that may come at once on top of that")

    quality: int = Field(50, ge=1, le=100, description="quality of the compressed images")
    express_images: int = Field(
        100, ge=0, description="requests of so many images or fewer have partitions that larger ones leave free"
    )
    fetch_allow: str = Field(
        "",
        description="host, IP or CIDR, each with an optional :port, that may be fetched or called although it is"
        " private or on another port than 80 and 443; comma-separated",
    )
    fetch_timeout: float = Field(30.0, gt=0, le=600, description="seconds one download may take in all")
    fetch_concurrency: int = Field(64, ge=1, le=1000, description="downloads under way in one compress worker")
    codec_processes: int = Field(
        default_factory=lambda: max(1, os.cpu_count() or 1),
        ge=1,
        le=256,
        description="decoder processes of one compress worker; unless set, one for each core",
    )
    downloads_per_host: int = Field(8, ge=1, le=1000, description="of those, from one host at a time")
    codec_timeout: float = Field(20.0, gt=0, le=600, description="seconds one image may take to decode and encode")
    stall_after: float = Field(
        300.0, gt=0, description="seconds without progress after which a request's missing images are asked for again"
    )
    heal_limit: int = Field(5, ge=0, description="how often that is done before the missing images count as failed")
    progress_grace: float = Field(
        3600.0, ge=0, description="seconds a completed request stays in the progress table; then the history answers"
    )
    max_upload_bytes: int = Field(512 * MIB, ge=1, description="largest CSV, in bytes")
    max_images_per_request: int = Field(1_000_000, ge=1, le=1_000_000, description="most images in one CSV")
    max_event_streams: int = Field(
        1000, ge=0, description="clients that may follow requests by Server-Sent Events, in one API process"
    )
    max_uploads: int = Field(
        256, ge=1, description="uploads under way at once in one API process; more are told to come back"
    )
    min_free_bytes: int = Field(
        256 * MIB, ge=0, description="bytes that uploads leave free on the disk of the data dir"
    )
    max_image_bytes: int = Field(50 * MIB, ge=1, description="largest image download, in bytes")
    fetch_memory: int = Field(
        256 * MIB,
        ge=1,
        description="bytes of images that are downloaded and not yet stored in one compress worker, that of one image"
        " more at most",
    )
    codec_memory: int = Field(
        2048 * MIB, ge=128 * MIB, description="bytes of memory that one decoder process may use, on Linux"
    )
    reuse_seconds: float = Field(
        300.0,
        ge=0,
        description="seconds in which a compress worker fetches no image a second time for the same quality and format",
    )
    max_image_pixels: int = Field(100_000_000, ge=1, description="most pixels of an image, over all its frames")

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least level logged")

    @field_validator("kafka_brokers", "cassandra_hosts")
    @classmethod
    def _addresses_are_addresses(cls, value: str | None) -> str | None:
        if value is not None:
            parse_addresses(value, default_port=1)
        return value

    @field_validator("public_url", "storage_public_url", "url", "webhook_url")
    @classmethod
    def _links_are_http(cls, value: str | None) -> str | None:
        if value is not None:
            parts = urlsplit(value)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("write it as http://host/… or https://host/…")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins_are_origins(cls, value: str) -> str:
        parse_origins(value)
        return value

    @field_validator("fetch_allow")
    @classmethod
    def _fetch_allow_is_readable(cls, value: str) -> str:
        if value:
            from infra.outbound import AllowList  # an HTTP client, which most commands can do without

            AllowList.parse(value)
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _webhook_secret_is_a_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parse_webhook_secrets(value.get_secret_value())
        return value

    @field_validator("webhook_schedule")
    @classmethod
    def _webhook_schedule_is_readable(cls, value: str) -> str:
        parse_webhook_schedule(value)
        return value

    @field_validator("api_keys")
    @classmethod
    def _api_keys_are_named_once(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parse_api_keys(value.get_secret_value())
        return value

    @property
    def first_api_key(self) -> str | None:
        """The key that our own command line uses."""
        if self.api_keys is None:
            return None
        return next(iter(parse_api_keys(self.api_keys.get_secret_value()).values()))

    @property
    def effective_rate_limit(self) -> float:
        """Without keys there is none unless it is asked for: behind a gateway all clients have one address."""
        if self.rate_limit is not None:
            return self.rate_limit
        return RATE_LIMIT_OF_A_KEY if self.api_keys else 0

    @property
    def effective_storage_url(self) -> str:
        return self.storage_url or (self.data_dir.absolute() / "storage").as_uri()

    @property
    def effective_public_url(self) -> str:
        return (self.public_url or f"http://{self.host}:{self.port}").rstrip("/")


def parse_api_keys(text: str) -> dict[str, str]:
    """``key`` or ``name:key``, comma-separated → name → key.

    What follows the first colon is the key. An unnamed key is called by its hash, so that it keeps its requests
    wherever it stands in the list.
    """
    keys: dict[str, str] = {}
    for position, entry in enumerate(part.strip() for part in text.split(",")):
        name, separator, key = entry.partition(":")
        if entry and not separator:
            name, key = f"key-{hashlib.sha256(entry.encode()).hexdigest()[:12]}", entry
        if not key or not name:
            raise ValueError(f"entry {position + 1} has an empty name or key")
        if name in keys:
            raise ValueError(f"the name {name!r} stands twice")
        keys[name] = key
    return keys


def parse_origins(text: str) -> frozenset[str]:
    """``scheme://host[:port]``, comma-separated, or ``*`` → the origins as browsers send them."""
    origins = frozenset(entry for entry in (part.strip() for part in text.split(",")) if entry)
    for origin in origins - {"*"}:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is not an origin: write https://host without a path, in lower case")
    return origins


def parse_addresses(text: str, default_port: int) -> list[tuple[str, int]]:
    """``host[:port],…`` → host and port of each; an IPv6 address that has a port stands in brackets."""
    addresses = []
    for position, entry in enumerate(part.strip() for part in text.split(",")):
        match = _ADDRESS.fullmatch(entry)
        port = int(match["port"] or default_port) if match else 0
        if match is None or not 0 < port < 65536:
            raise ValueError(f"entry {position + 1} is not host:port")
        addresses.append((match["six"] or match["host"], port))
    return addresses


def parse_webhook_secrets(text: str) -> list[bytes]:
    """The signing keys of one or more ``whsec_…`` secrets, separated by commas or spaces, the newest first.

    As Standard Webhooks writes them. The ValueError doesn't repeat them.
    """
    keys = []
    for secret in text.replace(",", " ").split():
        encoded = secret.removeprefix(WEBHOOK_SECRET_PREFIX)
        try:
            key = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            key = b""
        if not key or encoded == secret:
            raise ValueError(f"each must be `{WEBHOOK_SECRET_PREFIX}` followed by base64")
        keys.append(key)
    if not keys:
        raise ValueError("there is none in it")
    return keys


def parse_webhook_schedule(text: str) -> tuple[float, ...]:
    """Comma-separated seconds before each further attempt, none longer than a week. Raises ValueError."""
    pauses = tuple(float(part) for part in text.split(","))
    if len(pauses) > MAX_WEBHOOK_REPEATS or not all(0 <= pause <= 7 * 86_400 for pause in pauses):
        raise ValueError(f"at most {MAX_WEBHOOK_REPEATS} numbers of seconds, each at most a week")
    return pauses


def load_settings(**overrides: Any) -> Settings:
    """Read the environment and ``.env``; the environment wins.

    Raises SettingsError, whose message names every unknown or malformed variable.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    given = {*os.environ, *(dotenv_values(ENV_FILE) if ENV_FILE.is_file() else ())}
    unknown = sorted(name for name in given if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise SettingsError(f"unknown setting {', '.join(unknown)} (`shrinkstream settings` lists all)")
    try:
        return Settings(_env_file=ENV_FILE, **overrides)
    except ValidationError as error:
        raise SettingsError(
            "; ".join(f"{PREFIX}{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        ) from None


@cache
def settings() -> Settings:
    """The settings of this process, read once."""
    return load_settings()


def environment_of(values: Settings) -> dict[str, str]:
    """The variables that give a child process the same settings."""
    variables: dict[str, str] = {}
    for name, value in values:
        if value is not None:
            plain = value.get_secret_value() if isinstance(value, SecretStr) else value
            variables[PREFIX + name.upper()] = str(plain)
    return variables
