"""What is dangerous or odd in a ``config.properties``, and in the tokens of a running server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from handlers.errors import SignatureError
from marsmith import signing
from marsmith.addresses import TOKEN_FILE, hosts, join
from marsmith.environment import SIGNATURE_SETTING
from marsmith.finding import Finding, judge

# Less leaves no time to restart for new ones.
_SOON = timedelta(days=7)
_DAY_MINUTES = 1440
# Where an archive must never come from.
_ELSEWHERE = (
    "https://example.com/m.mar",
    "http://10.0.0.1/m.mar",
    "file:///tmp/m.mar",
    "s3://b/m.mar",
)
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "DB_PASSWORD")


def check(properties: Mapping[str, str], home: Path) -> Iterator[Finding]:
    """All findings about a configuration."""
    yield from _addresses(properties)
    yield from _switches(properties)
    yield _urls(properties.get("allowed_urls", "file://.*|http(s)?://.*"))
    yield _environment(properties.get("blacklist_env_vars", ""))
    yield _signatures(properties, home)
    yield from _tokens(home / TOKEN_FILE)


def _addresses(properties: Mapping[str, str]) -> Iterator[Finding]:
    for name, (host, port, secure) in hosts(properties).items():
        text = f"{join(host, port)}{' with TLS' if secure else ''}"
        mend = "name 127.0.0.1, or turn TLS on (docs/security.md) and keep a firewall before it"
        yield judge(not _is_loopback(host), f"{name} address", text, mend, soft=secure)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _switches(properties: Mapping[str, str]) -> Iterator[Finding]:
    def on(name: str) -> bool:
        return properties.get(name, "false").lower() == "true"

    open_ = on("disable_token_authorization")
    yield judge(
        open_,
        "token authorization",
        "off: whoever reaches a port may ask, scale and stop models" if open_ else "on",
        "disable_token_authorization=false",
    )
    given = properties.get("token_expiration_min", "60")
    yield judge(
        not open_ and not (given.isdecimal() and int(given) >= _DAY_MINUTES),
        "token lifetime",
        f"{given} minutes, and only a restart makes new ones",
        "token_expiration_min=525600",
        soft=True,
    )
    api = on("enable_model_api")
    yield judge(
        api,
        "model API",
        "on: the management token may register any archive of the store, signed or not"
        if api
        else "off",
        "enable_model_api=false, and `marsmith serve --model-api` for as long as it is needed",
        soft=True,
    )
    for name, danger in (
        ("install_py_dep_per_model", "an archive installs packages when it loads"),
        ("use_env_allowed_urls", "a variable of the environment may open allowed_urls"),
        ("enable_envvars_config", "variables of the environment override this file"),
    ):
        yield judge(on(name), name, danger if on(name) else "off", f"{name}=false")


def _urls(allowed: str) -> Finding:
    admitted = [url for url in _ELSEWHERE if any(_matches(one, url) for one in allowed.split(","))]
    text = f"{allowed} admits {', '.join(admitted)}" if admitted else f"{allowed}: the store alone"
    return judge(bool(admitted), "allowed_urls", text, "allowed_urls=none (CVE-2023-43654)")


def _matches(pattern: str, url: str) -> bool:
    try:
        return re.fullmatch(pattern.strip(), url) is not None
    except re.error:
        # Java's regular expressions are others: what cannot be judged here is not called safe.
        return True


def _environment(pattern: str) -> Finding:
    shown = [name for name in _SECRETS if not pattern or not _matches(pattern, name)]
    text = (
        f"{', '.join(shown)} would reach the workers" if shown else "secrets do not reach workers"
    )
    mend = "blacklist_env_vars=.*(KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL).*"
    return judge(bool(shown), "blacklist_env_vars", text, mend)


def _signatures(properties: Mapping[str, str], home: Path) -> Finding:
    try:
        keys = signing.required(properties, home)
    except SignatureError as error:
        return Finding("wrong", SIGNATURE_SETTING, str(error), "name a key that is there")
    if keys is None:
        return Finding("ok", SIGNATURE_SETTING, "not set: archives without a signature are served")
    loose = [key.name for key in keys if key.stat().st_mode & 0o022]
    text = f"{', '.join(loose)}: others may write it" if loose else f"{len(keys)} keys"
    return judge(bool(loose), SIGNATURE_SETTING, text, f"chmod go-w {' '.join(loose)}")


def _tokens(path: Path) -> Iterator[Finding]:
    if not path.exists():
        yield Finding("ok", TOKEN_FILE, "none: no server runs here")
        return
    loose = bool(path.stat().st_mode & 0o077)
    text = "others may read the tokens" if loose else "only its owner may read it"
    yield judge(loose, TOKEN_FILE, text, f"chmod 600 {path.name}, and restart for new tokens")
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
        ends = [
            datetime.fromisoformat(keys[k]["expiration time"]) for k in ("inference", "management")
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Finding("wrong", TOKEN_FILE, f"not TorchServe's: {error!r}", "restart the server")
        return
    left = min(ends) - datetime.now(UTC)
    text = f"tokens end at {min(ends):%Y-%m-%d %H:%M} UTC"
    yield judge(
        left < _SOON,
        "tokens",
        text,
        "restart the server, which writes new ones",
        left > timedelta(0),
    )
