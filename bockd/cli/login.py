"""On whose behalf `bock` acts: credentials, the token for them, and where the tenant's volumes are.

Credentials come from OpenStack's variables; when none is set, from the file that the daemon's first
start wrote. With OS_AUTH_URL the daemon (or another OpenStack's identity service) is found there,
and the volumes through its catalog; without it, both are on the daemon's Unix socket.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bockd import errors
from bockd.cli.faults import error_of_fault
from bockd.cli.http import SOCKET_URL, Answer, Http
from bockd.config import Settings

DECIDING = (
    *("OS_AUTH_URL", "OS_USERNAME", "OS_PASSWORD", "OS_TOKEN"),
    *("OS_TENANT_ID", "OS_PROJECT_ID", "OS_TENANT_NAME", "OS_PROJECT_NAME"),
)
"""When one of them is set, the environment is where credentials come from, and it must be whole."""

NOT_HONOURED = {
    "OS_CLOUD": "bock does not read clouds.yaml",
    "OS_APPLICATION_CREDENTIAL_ID": "bock has no application credentials",
    "OS_APPLICATION_CREDENTIAL_NAME": "bock has no application credentials",
    "OS_DOMAIN_ID": "bock acts for a tenant, not for a domain",
    "OS_DOMAIN_NAME": "bock acts for a tenant, not for a domain",
    "OS_SYSTEM_SCOPE": "bock acts for a tenant, not for a system",
    "OS_TRUST_ID": "bock knows no trusts",
    "OS_USER_ID": "bock logs in by name",
    "OS_ENDPOINT": "bock finds the volumes in the catalog",
    "OS_URL": "bock finds the volumes in the catalog",
}
"""Variables that say whom an OpenStack client acts for, or where, in ways that bock has not."""

PASSWORD_TYPES = {"password", "v2password", "v3password"}
TOKEN_TYPES = {"token", "v2token"}
"""OS_AUTH_TYPE: how to log in."""

INTERFACES = {"public": "publicURL", "internal": "internalURL", "admin": "adminURL"}
"""OS_INTERFACE, and what Keystone v2 calls it."""

SERVICE_TYPE = "volume"
"""What the catalog calls this API."""

DEFAULT_DOMAIN = "Default"
"""Keystone's own first domain."""

CREDENTIALS_FILE = "credentials.json"
"""Where the daemon's first start leaves credentials (bockd.identity.accounts)."""


@dataclass(frozen=True, slots=True)
class Login:
    """Who to be, and where to ask. Either a token, or a name and a password."""

    auth_url: str | None
    """None: the daemon's own socket."""
    username: str
    password: str = field(repr=False)
    token: str | None = field(repr=False)
    tenant_id: str | None
    tenant_name: str | None
    region: str | None
    interface: str
    """Which of an endpoint's URLs: public, internal or admin."""
    user_domain: Mapping[str, str]
    project_domain: Mapping[str, str]
    """For Keystone v3: `{"name": ...}` or `{"id": ...}`."""
    source: str
    """Where it came from, for the message when it is refused."""


@dataclass(frozen=True, slots=True)
class Session:
    """What a login gave."""

    token: str = field(repr=False)
    tenant_id: str
    url: str
    """Of the tenant's block storage."""


def find_login(environ: Mapping[str, str], settings: Settings) -> Login:
    """Find credentials in the environment, or else in the credentials file. Raises
    InvalidRequestError when the environment has only a part of them, or asks for what bock cannot
    do: it never acts for anybody else than the variables name."""
    given = openstack_variables(environ)
    refuse_not_honoured(given)
    if "OS_AUTH_URL" not in given:
        region, own = given.get("OS_REGION_NAME"), settings.catalog.region
        if region not in (None, own):
            raise errors.InvalidRequestError(
                f"OS_REGION_NAME is {region!r}, the daemon on this machine is in {own!r}: set "
                "OS_AUTH_URL to where that region is known, or unset OS_REGION_NAME"
            )
    if any(name in given for name in DECIDING):
        return _from_environment(given)
    stored = read_credentials(settings.data_dir)
    return Login(
        auth_url=None,
        username=stored["username"],
        password=stored["password"],
        token=None,
        tenant_id=stored["tenant_id"],
        tenant_name=stored["tenant"],
        region=None,
        interface="public",
        user_domain={"name": DEFAULT_DOMAIN},
        project_domain={"name": DEFAULT_DOMAIN},
        source=f"the credentials in {settings.data_dir / CREDENTIALS_FILE}",
    )


def openstack_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the OpenStack variables that are set. An empty one counts as not set."""
    return {name: value for name, value in environ.items() if name.startswith("OS_") and value}


def refuse_not_honoured(given: Mapping[str, str]) -> None:
    """Raise InvalidRequestError for a variable that other clients would follow elsewhere. With a
    whole set of other variables OS_CLOUD adds nothing for them either."""
    whole = {"OS_AUTH_URL", "OS_USERNAME", "OS_PASSWORD"} <= given.keys()
    for name, reason in NOT_HONOURED.items():
        if name in given and not (name == "OS_CLOUD" and whole):
            raise errors.InvalidRequestError(
                f"{name} is set, and {reason}: unset it, and set OS_AUTH_URL, OS_USERNAME, "
                "OS_PASSWORD and OS_TENANT_NAME, or none of them for the daemon on this machine"
            )
    kind = given.get("OS_AUTH_TYPE") or given.get("OS_AUTH_PLUGIN")
    allowed = TOKEN_TYPES if "OS_TOKEN" in given else PASSWORD_TYPES
    if kind is not None and kind not in allowed:
        raise errors.InvalidRequestError(
            f"OS_AUTH_TYPE is {kind!r}: bock logs in by password (OS_USERNAME and OS_PASSWORD) or "
            "shows OS_TOKEN; unset OS_AUTH_TYPE"
        )
    if _interface(given) not in INTERFACES:
        raise errors.InvalidRequestError(
            f"OS_INTERFACE is {_interface(given)!r}, and is one of {', '.join(INTERFACES)}"
        )


def _interface(given: Mapping[str, str]) -> str:
    """The older variable has Keystone v2's names."""
    named = given.get("OS_INTERFACE") or given.get("OS_ENDPOINT_TYPE") or "public"
    return named.removesuffix("URL")


def _domain(given: Mapping[str, str], whose: str) -> Mapping[str, str]:
    """Of a user or a project, by its own variables or the default's."""
    for prefix in (f"OS_{whose}_DOMAIN", "OS_DEFAULT_DOMAIN"):
        if found := given.get(f"{prefix}_ID"):
            return {"id": found}
        if found := given.get(f"{prefix}_NAME"):
            return {"name": found}
    if found := given.get("OS_DEFAULT_DOMAIN"):
        return {"id": found}
    return {"name": DEFAULT_DOMAIN}


def _auth_url(given: Mapping[str, str]) -> str | None:
    """With the version that OS_IDENTITY_API_VERSION asks for, where the URL says none."""
    url = given.get("OS_AUTH_URL")
    version = given.get("OS_IDENTITY_API_VERSION", "").removeprefix("v").partition(".")[0]
    if url is None or version != "3":
        return url
    url = url.rstrip("/")
    return url if url.endswith(("/v2.0", "/v3")) else f"{url}/v3"


def _from_environment(given: Mapping[str, str]) -> Login:
    token = given.get("OS_TOKEN")
    missing = [name for name in ("OS_USERNAME", "OS_PASSWORD") if name not in given]
    if missing and token is None:
        seen = next(name for name in DECIDING if name in given)
        raise errors.InvalidRequestError(
            f"{seen} is set and {' and '.join(missing)} is not: set OS_USERNAME and OS_PASSWORD, "
            "or unset all OS_ variables to use the daemon's own credentials file"
        )
    return Login(
        auth_url=_auth_url(given),
        username=given.get("OS_USERNAME", ""),
        password=given.get("OS_PASSWORD", ""),
        token=token,
        tenant_id=given.get("OS_TENANT_ID") or given.get("OS_PROJECT_ID"),
        tenant_name=given.get("OS_TENANT_NAME") or given.get("OS_PROJECT_NAME"),
        region=given.get("OS_REGION_NAME"),
        interface=_interface(given),
        user_domain=_domain(given, "USER"),
        project_domain=_domain(given, "PROJECT"),
        source="OS_TOKEN" if token else "OS_USERNAME and OS_PASSWORD of the environment",
    )


def read_credentials(data_dir: Path) -> dict[str, str]:
    """Read the credentials that the daemon's first start wrote. Raises NotFoundError,
    ForbiddenError, DamagedError."""
    import msgspec

    path = data_dir / CREDENTIALS_FILE
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except FileNotFoundError as error:
        raise errors.NotFoundError(
            f"there is no {path}: the daemon's first start writes it; set BOCKD_DATA to its "
            "directory, or OS_USERNAME and OS_PASSWORD"
        ) from error
    except OSError as error:
        raise errors.ForbiddenError(
            f"{path} cannot be read ({error.strerror}): run as the user who started the daemon, or "
            "set OS_AUTH_URL, OS_USERNAME and OS_PASSWORD"
        ) from error
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise errors.DamagedError(f"{path} is not what a daemon wrote: {error}") from error
    for key in ("tenant", "tenant_id", "username", "password"):
        if key not in found:
            raise errors.DamagedError(f"{path} is not what a daemon wrote: it has no {key}")
    return found


def log_in(http: Http, login: Login) -> Session:
    """Ask for a token. Raises UnauthorizedError, which says where the credentials came from."""
    url = (login.auth_url or SOCKET_URL).rstrip("/")
    try:
        if login.token is not None:
            return _with_token(http, login, url, login.token)
        if url.endswith("/v3"):
            return _log_in_v3(http, login, url)
        return _log_in_v2(http, login, url)
    except (KeyError, TypeError) as error:
        raise errors.UnavailableError(
            f"{url} does not answer as Keystone does, with a token for a tenant ({error!r})"
        ) from error


def _log_in_v2(http: Http, login: Login, url: str) -> Session:
    credentials = {"username": login.username, "password": login.password}
    auth: dict[str, object] = {"passwordCredentials": credentials}
    if login.tenant_id is not None:
        auth["tenantId"] = login.tenant_id
    elif login.tenant_name is not None:
        auth["tenantName"] = login.tenant_name
    url = f"{_v2(url)}/tokens"
    access = _decode(_ask(http, login, "POST", url, {"auth": auth}), url)["access"]
    tenant_id = str(access["token"]["tenant"]["id"])
    if login.auth_url is None:
        # The catalog names addresses for clients elsewhere; here we are connected already.
        endpoint = f"{SOCKET_URL}/v1.1/{tenant_id}"
    else:
        kind = INTERFACES[login.interface]
        endpoint = _endpoint(
            login, ((e["region"], e[kind]) for e in _v2_endpoints(access) if kind in e)
        )
    return Session(str(access["token"]["id"]), tenant_id, endpoint)


def _v2(url: str) -> str:
    """Users write the identity service's address with its version or without."""
    return url if url.endswith("/v2.0") else f"{url}/v2.0"


def _v2_endpoints(access: Mapping[str, Any]) -> Iterable[Mapping[str, str]]:
    for service in access["serviceCatalog"]:
        if service["type"] == SERVICE_TYPE:
            yield from service["endpoints"]


def _log_in_v3(http: Http, login: Login, url: str) -> Session:
    user = {"name": login.username, "password": login.password, "domain": login.user_domain}
    auth: dict[str, object] = {"identity": {"methods": ["password"], "password": {"user": user}}}
    if login.tenant_id is not None:
        auth["scope"] = {"project": {"id": login.tenant_id}}
    elif login.tenant_name is not None:
        project = {"name": login.tenant_name, "domain": login.project_domain}
        auth["scope"] = {"project": project}
    url = f"{url}/auth/tokens"
    answer = _ask(http, login, "POST", url, {"auth": auth})
    token = _decode(answer, url)["token"]
    endpoints = (
        (endpoint["region"], endpoint["url"])
        for service in token.get("catalog", ())
        if service["type"] == SERVICE_TYPE
        for endpoint in service["endpoints"]
        if endpoint["interface"] == login.interface
    )
    return Session(
        answer.headers["x-subject-token"], str(token["project"]["id"]), _endpoint(login, endpoints)
    )


def _endpoint(login: Login, offered: Iterable[tuple[str, str]]) -> str:
    """The first endpoint, in the region that is asked for."""
    regions = []
    for region, url in offered:
        if login.region in (None, region):
            return url.rstrip("/")
        regions.append(region)
    if regions:
        raise errors.NotFoundError(
            f"there is no region {login.region!r} (OS_REGION_NAME); there is: {', '.join(regions)}"
        )
    raise errors.NotFoundError(
        f"the catalog of {login.auth_url} has no service of type {SERVICE_TYPE!r} with a "
        f"{login.interface} URL"
    )


def _with_token(http: Http, login: Login, url: str, token: str) -> Session:
    """A token says nothing of the catalog: the volumes are expected where the tenants are."""
    if url.endswith("/v3"):
        raise errors.NotSupportedError("OS_TOKEN needs an OS_AUTH_URL of Keystone v2.0")
    asked = f"{_v2(url)}/tenants"
    answer = _ask(http, login, "GET", asked, None, {"X-Auth-Token": token})
    for tenant in _decode(answer, asked)["tenants"]:
        if login.tenant_id in (None, tenant["id"]) and login.tenant_name in (None, tenant["name"]):
            host = urlsplit(url)
            return Session(
                token, tenant["id"], f"{host.scheme}://{host.netloc}/v1.1/{tenant['id']}"
            )
    raise errors.NotFoundError(
        f"OS_TOKEN is not for tenant {login.tenant_id or login.tenant_name!r}"
    )


def _ask(
    http: Http,
    login: Login,
    method: str,
    url: str,
    body: Mapping[str, object] | None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    answer = http.request(method, url, body, headers=headers)
    if answer.status == 401:
        asked_for = login.tenant_name or login.tenant_id
        in_tenant = f" in tenant {asked_for!r}" if asked_for else ""
        raise errors.UnauthorizedError(
            f"{login.source} are refused{in_tenant} by {login.auth_url or 'the daemon'}: "
            "is the tenant right, and is the password still valid?"
            if login.token is None
            else f"OS_TOKEN is refused by {login.auth_url or 'the daemon'}: it may have expired"
        )
    if answer.is_error:
        raise error_of_fault(answer, url)
    return answer


def _decode(answer: Answer, url: str) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(answer.content)
    except msgspec.DecodeError as error:
        raise errors.UnavailableError(f"{url} does not answer as Keystone does: {error}") from error
