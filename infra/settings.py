"""Settings: environment variables with the prefix ``SHRINKSTREAM_``, also read from ``.env``.

``shrinkstream settings`` prints each field's description. An unknown or malformed variable is an
error at start that names the variable: a typo must not silently mean "use the default".
"""

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.errors import ExplainedError
from infra.outbound.addresses import AllowList
from infra.outbound.request_headers import RequestHeaders

PREFIX = "SHRINKSTREAM_"
ENV_FILE = Path(".env")

MIB = 1024 * 1024
MAX_PARTITIONS = 1024
MAX_WEBHOOK_RETRIES = 50
RATE_LIMIT_OF_A_KEY = 200
WEBHOOK_SECRET_PREFIX = "whsec_"  # noqa: S105 - the prefix of Standard Webhooks, no secret

_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<host>[^\s:/@\[\],]+))(?::(?P<port>[0-9]{1,5}))?")
_ORIGIN = re.compile(r"https?://[^\s/?#@,A-Z]+")


class SettingsError(ExplainedError):
    """Invalid settings; the message names each variable and its error."""


def parse_api_keys(text: str) -> dict[str, str]:
    """``key`` or ``name:key``, comma-separated → name → key.

    The first colon separates name and key. An unnamed key is named by its hash, so that it keeps its requests
    at any position in the list.
    """
    keys: dict[str, str] = {}
    for position, entry in enumerate(part.strip() for part in text.split(",")):
        name, separator, key = entry.partition(":")
        if entry and not separator:
            name, key = f"key-{hashlib.sha256(entry.encode()).hexdigest()[:12]}", entry
        if not key or not name:
            raise ValueError(f"entry {position + 1} has an empty name or key")
        if name in keys:
            raise ValueError(f"the name {name!r} occurs twice")
        keys[name] = key
    return keys


def parse_origins(text: str) -> frozenset[str]:
    """``scheme://host[:port]``, comma-separated, or ``*`` → the origins as browsers send them."""
    origins = frozenset(entry for entry in (part.strip() for part in text.split(",")) if entry)
    for origin in origins - {"*"}:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is not an origin: write https://host without a path, in lower case")
    return origins


def parse_addresses(text: str, default_port: int = 1) -> list[tuple[str, int]]:
    """``host[:port],…`` → host and port of each; an IPv6 address with a port is in brackets."""
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

    In the format of Standard Webhooks. Raises ValueError, whose message doesn't contain them.
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
        raise ValueError("it has no secret")
    return keys


def webhook_secret_text(keys: Iterable[bytes]) -> str:
    """The reverse of `parse_webhook_secrets`."""
    return ",".join(WEBHOOK_SECRET_PREFIX + base64.b64encode(key).decode() for key in keys)


def parse_webhook_schedule(text: str) -> tuple[float, ...]:
    """Comma-separated backoff before each further delivery attempt, in seconds up to a week. Raises ValueError."""
    backoffs = tuple(float(part) for part in text.split(","))
    if len(backoffs) > MAX_WEBHOOK_RETRIES or not all(0 <= backoff <= 7 * 86_400 for backoff in backoffs):
        raise ValueError(f"write at most {MAX_WEBHOOK_RETRIES} numbers of seconds, each at most a week")
    return backoffs


def _parse_link(text: str) -> None:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("write it as http://host/… or https://host/…")


def _parse_webhook_url(text: str) -> None:
    _parse_link(text)
    if "@" in urlsplit(text).netloc:
        raise ValueError("credentials in the URL would be public; verify the webhook's signature instead")


def _parse_storage_url(text: str) -> None:
    parts = urlsplit(text)
    is_folder = parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/")
    if not is_folder and not (parts.scheme == "s3" and parts.netloc):
        raise ValueError("write it as file:///folder or s3://bucket/prefix")


T = TypeVar("T", str, SecretStr)


def _readable_by(parse: Callable[[str], object]) -> AfterValidator:
    """Reject a text that ``parse`` can't read. The text is kept, for child processes."""

    def check(value: T) -> T:
        parse(value.get_secret_value() if isinstance(value, SecretStr) else value)
        return value

    return AfterValidator(check)


Addresses: TypeAlias = Annotated[str, _readable_by(parse_addresses)]
Link: TypeAlias = Annotated[str, _readable_by(_parse_link)]


class Settings(BaseSettings):
    """Configuration of a running shrinkstream."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="ignore")

    kafka_brokers: Addresses | None = Field(
        None, description="host:port,… of an existing Kafka cluster; unset: the embedded Kafka of `up`"
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="security protocol of the brokers"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "PLAIN", description="SASL mechanism, if the security protocol is SASL_…"
    )
    kafka_sasl_username: str | None = Field(None, description="SASL user name")
    kafka_sasl_password: SecretStr | None = Field(None, description="SASL password")
    kafka_ssl_cafile: Path | None = Field(None, description="PEM file of the CA of the brokers' certificates")
    kafka_ssl_certfile: Path | None = Field(None, description="PEM file of this client's certificate")
    kafka_ssl_keyfile: Path | None = Field(None, description="PEM file of this client's key")
    kafka_replication_factor: int = Field(
        1, ge=1, le=7, description="replication factor of the topics that `init` creates (3 on a real cluster)"
    )

    topic_prefix: str = Field(
        "shrinkstream",
        pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,99}$",
        description="prefix of topics and consumer groups, to run two systems on one cluster",
    )
    partitions: int = Field(
        8,
        ge=1,
        le=MAX_PARTITIONS,
        description="partitions of each topic that `init` creates: the permanent limit of scaling out"
        " (image-requests alone can grow: `init --partitions`)",
    )

    cassandra_hosts: Addresses | None = Field(
        None, description="host[:port],… of an existing Cassandra; unset: the embedded Cassandra of `up`"
    )
    cassandra_username: str | None = Field(None, description="Cassandra user name")
    cassandra_password: SecretStr | None = Field(None, description="Cassandra password")
    cassandra_tls: bool = Field(False, description="use TLS for Cassandra")
    cassandra_cafile: Path | None = Field(
        None, description="PEM file of the CA of Cassandra's certificates; unset: the system's CAs"
    )
    cassandra_certfile: Path | None = Field(None, description="PEM file of this client's certificate for Cassandra")
    cassandra_keyfile: Path | None = Field(None, description="PEM file of this client's key for Cassandra")
    cassandra_datacenter: str | None = Field(None, description="local datacenter; unset: that of the first host")
    cassandra_keyspace: str = Field(
        "shrinkstream", pattern=r"^[a-z][a-z0-9_]{0,47}$", description="keyspace of the history tables"
    )

    cassandra_batch_bytes: int = Field(
        5 * 1024,
        ge=1024,
        le=1024 * 1024,
        description="largest batch of history writes (bytes), with a write per KiB, at least 10: what Cassandra's"
        " batch_size_warn_threshold and unlogged_batch_across_partitions_warn_threshold allow; embedded: 40 KiB",
    )
    cassandra_replication_factor: int = Field(
        1,
        ge=1,
        le=7,
        description="replication factor of the keyspace that `init` creates (3 on a real cluster)",
    )

    data_dir: Path = Field(
        Path(".shrinkstream"),
        description="directory of this machine's embedded servers, stored images, spool files and logs",
    )
    storage_url: Annotated[str, _readable_by(_parse_storage_url)] | None = Field(
        None,
        description="storage of images and output CSVs: file:///… or s3://bucket/prefix; unset: in the data dir",
    )
    storage_public_url: Link | None = Field(
        None,
        description="public URL prefix of the stored images, at the bucket or a CDN in front of it; unset: the API"
        " serves them",
    )
    storage_redirect: bool = Field(
        False,
        description="answer GET /images/… with a redirect to a presigned URL of the s3:// bucket instead of the image",
    )
    retention_days: float | None = Field(
        None,
        gt=0,
        le=36_500,
        description="retention in days: the images and CSVs of a finished request expire after it; unset: never",
    )
    public_url: Link | None = Field(None, description="URL prefix of all links; unset: the API's own address")
    host: str = Field("127.0.0.1", description="address the API listens on")
    port: int = Field(8080, ge=0, le=65535, description="port the API listens on; 0: any free one")
    worker_host: str = Field("127.0.0.1", description="address a worker serves probes and metrics on")
    worker_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="port a worker serves /healthz, /readyz and /metrics on; 0: any free one, which it logs; unset:"
        " none (`up` gives each of its workers one)",
    )
    url: Link = Field("http://127.0.0.1:8080", description="server URL for submit, status, download and watch")

    webhook_url: Annotated[str, _readable_by(_parse_webhook_url)] | None = Field(
        None, description="default webhook receiver, for requests without a webhookUrl"
    )
    webhook_secret: Annotated[SecretStr, _readable_by(parse_webhook_secrets)] | None = Field(
        None, description="whsec_… secret that signs webhooks; several, comma-separated, during a rotation"
    )
    webhook_schedule: Annotated[str, _readable_by(parse_webhook_schedule)] = Field(
        "5,300,1800,7200,18000,36000,50400",
        description="backoff: seconds before each further delivery attempt of a webhook; the first is immediate",
    )
    api_keys: Annotated[SecretStr, _readable_by(parse_api_keys)] | None = Field(
        None,
        description="API keys: `key` or `name:key` (split at the first colon), comma-separated; unset: no"
        " authentication, and only on loopback",
    )

    open_network: bool = Field(
        False,
        description="serve without API keys on other addresses than loopback, such as behind an authenticating proxy;"
        " for any Host unless PUBLIC_URL is set",
    )

    cors_origins: Annotated[str, _readable_by(parse_origins)] = Field(
        "",
        description="CORS: origins whose pages may use the API (https://shop.example), comma-separated, or *; unset:"
        " none",
    )
    rate_limit: float | None = Field(
        None,
        ge=0,
        description="rate limit of each API key (or client address, without keys) in HTTP requests per second; 0:"
        f" unlimited; unset: {RATE_LIMIT_OF_A_KEY} with keys, unlimited without",
    )
    rate_limit_burst: int = Field(2000, ge=1, description="burst size of the rate limit")

    quality: Annotated[int, Field(ge=1, le=100)] | Literal["auto"] = Field(
        50, description="quality of the compressed images, 1 to 100, or auto: chosen for each image"
    )
    max_width: int = Field(0, ge=0, le=65_535, description="largest width of the results in pixels; 0: no limit")
    max_height: int = Field(0, ge=0, le=65_535, description="largest height of the results in pixels; 0: no limit")
    express_images: int = Field(
        100, ge=0, description="requests with at most this many images use the express partitions"
    )
    fetch_allow: Annotated[str, _readable_by(AllowList.parse)] = Field(
        "",
        description="SSRF allow list: private hosts, IPs or CIDRs, and ports other than 80 and 443, that may be fetched"
        " or called; each with an optional :port; comma-separated",
    )
    fetch_headers: Annotated[str, _readable_by(RequestHeaders.parse)] = Field(
        "",
        description="headers of downloads per host, as JSON: the key is a host, `.domain` (with its subdomains) or `*`,"
        " the value has User-Agent, Accept or Referer (`origin`: that of the image's URL), as in"
        ' {".shop.example": {"Referer": "origin"}}',
    )
    fetch_timeout: float = Field(
        30.0, gt=0, le=600, description="deadline of one download in seconds, retries included"
    )
    fetch_concurrency: int = Field(64, ge=1, le=1000, description="concurrent downloads in one compress worker")
    codec_processes: int = Field(
        default_factory=lambda: max(1, os.cpu_count() or 1),
        ge=1,
        le=256,
        description="decoder processes of one compress worker, and one more for the next owner; unset: one per core",
    )
    downloads_per_host: int = Field(
        8, ge=1, le=1000, description="concurrent downloads from one host in one compress worker"
    )
    codec_timeout: float = Field(
        20.0, gt=0, le=600, description="CPU time limit in seconds of decoding and encoding one image"
    )
    stall_after: float = Field(
        300.0, gt=0, description="seconds without progress after which a request is stalled and is reconciled"
    )
    reconcile_rounds: int = Field(
        5, ge=0, description="rounds in which missing images of a stalled run are requested again before they fail"
    )
    progress_grace: float = Field(
        3600.0, ge=0, description="seconds before a completed request is evicted from the progress table to the history"
    )
    max_upload_bytes: int = Field(512 * MIB, ge=1, description="largest CSV, in bytes")
    max_images_per_request: int = Field(1_000_000, ge=1, le=1_000_000, description="most images in one CSV")
    max_images_per_day: int = Field(
        10_000_000,
        ge=0,
        description="images that one API key may upload or retry per day in one API process; 0: unlimited",
    )
    max_upload_bytes_per_day: int = Field(
        16 * 1024 * MIB,
        ge=0,
        description="bytes of CSVs that one API key may upload per day in one API process; 0: unlimited",
    )
    max_event_streams: int = Field(
        1000,
        ge=0,
        description="maximum number of open Server-Sent Event streams in one API process; each of several API keys may"
        " have a quarter",
    )
    max_uploads: int = Field(
        256,
        ge=1,
        description="maximum number of concurrent uploads in one API process; further ones get 503; each of several"
        " API keys may have a quarter",
    )
    min_free_bytes: int = Field(
        256 * MIB, ge=0, description="free bytes on the data dir's disk below which uploads are refused"
    )
    max_image_bytes: int = Field(50 * MIB, ge=1, description="largest image download, in bytes")
    fetch_memory: int = Field(
        256 * MIB,
        ge=1,
        description="memory budget (bytes) for in-flight downloads per compress worker; may be exceeded by one image",
    )
    codec_memory: int = Field(
        2048 * MIB, ge=128 * MIB, description="memory limit of one decoder process in bytes, on Linux"
    )
    reuse_seconds: float = Field(
        300.0,
        ge=0,
        description="seconds for which a compress worker reuses an owner's image of the same URL, quality, format and"
        " size",
    )
    max_image_pixels: int = Field(100_000_000, ge=1, description="most pixels of an image, over all its frames")

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="minimum level of log lines")

    @model_validator(mode="after")
    def _credentials_are_complete(self) -> Self:
        if self.kafka_security_protocol.startswith("SASL") and not (
            self.kafka_sasl_username and self.kafka_sasl_password
        ):
            raise ValueError(
                f"{PREFIX}KAFKA_SECURITY_PROTOCOL={self.kafka_security_protocol} needs"
                f" {PREFIX}KAFKA_SASL_USERNAME and {PREFIX}KAFKA_SASL_PASSWORD"
            )
        if self.cassandra_username and not self.cassandra_password:
            raise ValueError(f"{PREFIX}CASSANDRA_USERNAME needs {PREFIX}CASSANDRA_PASSWORD")
        return self

    @property
    def keys_by_owner(self) -> dict[str, str]:
        """Name → API key."""
        return parse_api_keys(self.api_keys.get_secret_value()) if self.api_keys else {}

    @property
    def first_api_key(self) -> str | None:
        """The API key that the command line sends."""
        return next(iter(self.keys_by_owner.values()), None)

    @property
    def signing_keys(self) -> list[bytes]:
        """The signing keys of webhooks, the newest first."""
        return parse_webhook_secrets(self.webhook_secret.get_secret_value()) if self.webhook_secret else []

    @property
    def effective_rate_limit(self) -> float:
        """The rate limit; without API keys 0 by default, since all clients of a gateway share its address."""
        if self.rate_limit is not None:
            return self.rate_limit
        return RATE_LIMIT_OF_A_KEY if self.api_keys else 0

    @property
    def effective_storage_url(self) -> str:
        return self.storage_url or (self.data_dir.absolute() / "storage").as_uri()

    @property
    def own_address(self) -> str:
        """``host:port`` at which this machine reaches the API, whatever it listens on."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def effective_public_url(self) -> str:
        return (self.public_url or f"http://{self.own_address}").rstrip("/")


def origin_of(url: str) -> str:
    """``scheme://host[:port]`` of a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def load_settings(**overrides: Any) -> Settings:
    """Read the environment and ``.env``; the environment wins.

    Raises SettingsError, whose message names every unknown or malformed variable.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    in_file = _env_file()
    unknown = sorted(
        name for name in {*os.environ, *in_file} if name.upper().startswith(PREFIX) and name.upper() not in known
    )
    if unknown:
        raise SettingsError(f"unknown setting {', '.join(unknown)} (`shrinkstream settings` lists all)")
    for name, value in in_file.items():
        if name.startswith("AWS_") and value:
            os.environ.setdefault(name, value)  # for the S3 client
    try:
        return Settings(_env_file=ENV_FILE, **overrides)
    except ValidationError as error:
        raise SettingsError("; ".join(_message(one["loc"], one["msg"]) for one in error.errors())) from None


def _env_file() -> dict[str, str | None]:
    try:
        return dotenv_values(ENV_FILE) if ENV_FILE.is_file() else {}
    except UnicodeDecodeError:
        raise SettingsError(f"{ENV_FILE.absolute()} is not in UTF-8") from None


def _message(loc: tuple[int | str, ...], message: str) -> str:
    """Error message of one variable; an error of several has no ``loc``, and its message names them."""
    return f"{PREFIX}{str(loc[0]).upper()}: {message}" if loc else message.removeprefix("Value error, ")


@cache
def settings() -> Settings:
    """The settings of this process, read once."""
    return load_settings()


_CASSANDRA = frozenset({"cassandra_username", "cassandra_password"})
SECRETS: Mapping[str, frozenset[str]] = {
    "api": _CASSANDRA | {"api_keys", "webhook_url"},
    "compress": frozenset(),
    "progress": frozenset(),
    "projections": _CASSANDRA | {"webhook_secret"},
}
"""Settings that only these roles are given; Kafka's are needed by all."""


def environment_of(values: Settings, role: str | None = None) -> dict[str, str]:
    """Environment variables that give a child process the same settings, of the secrets those of its role."""
    withheld = frozenset().union(*SECRETS.values()) - SECRETS[role] if role else frozenset()
    variables: dict[str, str] = {}
    for name, value in values:
        if value is not None and name not in withheld:
            plain = value.get_secret_value() if isinstance(value, SecretStr) else value
            variables[PREFIX + name.upper()] = str(plain)
    return variables
