"""The address of a folder on object storage: what a URI may say, and what it must not.

`s3://bucket/prefix?endpoint_override=host:port&scheme=http&region=...` and `gs://bucket/prefix`, as pyarrow spells
them, but without credentials: addresses are logged and kept in run directories, so a URI that holds a secret is
refused. Credentials come from where the provider's own tools take them: environment, profile, machine role.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from pyarrow import fs

from influray.protocols import ConfigError

OPTIONS = {
    "s3": ("endpoint_override", "scheme", "region", "anonymous", "timeout"),
    "gs": ("endpoint_override", "scheme", "anonymous", "timeout"),
}
CREDENTIALS = {
    "s3": "the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), ~/.aws, or the machine's role",
    "gs": "Google's application default credentials (GOOGLE_APPLICATION_CREDENTIALS, or the machine's account)",
}
TIMEOUT_SECONDS = 30.0  # without a byte


@dataclass(frozen=True)
class StorageUri:
    """A folder in a bucket, and how to reach it."""

    scheme: str
    bucket: str
    prefix: str  # without slashes at its ends
    options: tuple[tuple[str, str], ...]  # sorted

    def __str__(self) -> str:
        query = f"?{urlencode(self.options, safe=':/')}" if self.options else ""
        return f"{self.scheme}://{self.bucket}/{quote(self.prefix)}{query}"

    @property
    def key(self) -> str:
        """Bucket and prefix, as pyarrow names them."""
        return f"{self.bucket}/{self.prefix}"

    @property
    def shown(self) -> str:
        """What messages show: without the options."""
        return f"{self.scheme}://{self.key}"

    def join(self, relative: str) -> StorageUri:
        """Return the address of something below."""
        return StorageUri(self.scheme, self.bucket, f"{self.prefix}/{relative}".strip("/"), self.options)

    @property
    def parent(self) -> StorageUri:
        """The folder above; of a folder that lies in the bucket itself there is none, and the prefix is ""."""
        return StorageUri(self.scheme, self.bucket, self.prefix.rpartition("/")[0], self.options)

    def filesystem(self, delayed: bool = True) -> fs.FileSystem:
        """Return the pyarrow file system that reaches the bucket; with `delayed` it begins an object when it is closed.

        Raises:
            OSError: the region of the bucket cannot be found out.
        """
        options = dict(self.options)
        seconds = float(options.get("timeout", TIMEOUT_SECONDS))
        shared: dict[str, Any] = {}
        for name in ("endpoint_override", "scheme"):
            if name in options:
                shared[name] = options[name]
        if options.get("anonymous", "") == "true":
            shared["anonymous"] = True
        if self.scheme == "gs":
            return fs.GcsFileSystem(**shared, retry_time_limit=timedelta(seconds=seconds))
        region = options.get("region")
        if region is None:
            region = "us-east-1" if "endpoint_override" in options else fs.resolve_s3_region(self.bucket)
        return fs.S3FileSystem(
            **shared,
            region=region,
            connect_timeout=seconds,
            request_timeout=seconds,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
            allow_delayed_open=delayed,
        )


def is_uri(place: str | Path) -> bool:
    """Return whether a place is an address on object storage, and no path."""
    return isinstance(place, str) and "://" in place


def redacted(uri: str) -> str:
    """Return a URI without anything that could be a secret: no user, no options."""
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.partition('?')[0].partition('#')[0].rpartition('@')[2]}"


def parse_uri(uri: str, key: str = "run_dir") -> StorageUri:
    """Return what a URI says. `key` is what messages name.

    Raises:
        ConfigError: another scheme, no bucket or folder, an option that is not known, or credentials in it.
    """
    parts = urlsplit(uri)
    shown = redacted(uri)
    if parts.scheme not in OPTIONS:
        raise ConfigError(f"{key}: {shown} is neither a path nor on object storage (s3://bucket/folder, gs://...)")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    host = options.get("endpoint_override", "")
    named = [name for name in options if name not in OPTIONS[parts.scheme]]
    if "@" in parts.netloc or "@" in host or any(_secret(name) for name in named):
        raise ConfigError(
            f"{key}: {shown} was given with credentials in it, and addresses are logged; take them out and give them "
            f"through {CREDENTIALS[parts.scheme]}"
        )
    if named or parts.fragment:
        raise ConfigError(
            f"{key}: {shown} has the option {(named or ['#'])[0]!r}; known: {', '.join(OPTIONS[parts.scheme])}"
        )
    for name, allowed in (("scheme", ("http", "https")), ("anonymous", ("true", "false"))):
        if name in options and options[name] not in allowed:
            raise ConfigError(f"{key}: {shown}: {name} is {' or '.join(allowed)} (found {options[name]!r})")
    if not options.get("timeout", "1").replace(".", "", 1).isdigit():
        raise ConfigError(f"{key}: {shown}: timeout is a number of seconds (found {options['timeout']!r})")
    if "://" in host:  # pyarrow's own file systems take host:port
        scheme, _, host = host.partition("://")
        options |= {"endpoint_override": host.rstrip("/"), "scheme": options.get("scheme", scheme)}
    prefix = unquote(parts.path).strip("/")
    pieces = prefix.split("/")
    if not parts.netloc or not prefix or any(piece in ("", ".", "..") for piece in pieces):
        raise ConfigError(f"{key}: found {shown}; expected {parts.scheme}://bucket/folder")
    return StorageUri(parts.scheme, parts.netloc, prefix, tuple(sorted(options.items())))


def _secret(option: str) -> bool:
    return any(part in option.lower() for part in ("key", "secret", "token", "password", "credential"))
