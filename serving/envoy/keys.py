"""API keys as Envoy enforces them. Pure rendering; docs/adr/0006-api-keys.md has the reasons.

    x-api-key: WORD  or  authorization: Bearer WORD          (gRPC metadata are headers too)
      -> early: one internal header, so that no filter, log or worker meets the client's own
      -> `basic_auth` checks the SHA-1 of the secret, and sets the key's name        401
      -> `local_ratelimit` takes a token from the bucket of that name                429
      -> `rbac` on the routes of a model that some key may not ask                   403
      -> the route takes the internal header away before a worker is asked

The filters are in the bootstrap, what they know is in the routes: so keys change as routes do, without a restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

from serving.api_keys import ApiKey
from serving.envoy.messages import set_header, typed

KEY_HEADER = "x-api-key"
NAME_HEADER = "x-modelway-key-name"  # the name of the key that was accepted; nobody but `basic_auth` sets it
CREDENTIALS_HEADER = "x-modelway-credentials"  # the client's word on its way to `basic_auth`
_NAMESPACE = "modelway.key"

_BASIC_AUTH = "envoy.filters.http.basic_auth"
_RATE_LIMIT = "envoy.filters.http.local_ratelimit"
_RBAC = "envoy.filters.http.rbac"
_RBAC_WHEN_ROUTED = "modelway.rbac_when_routed"  # for requests whose model is read from the body: the first has met another route
WHEN_ROUTED = (_RBAC_WHEN_ROUTED,)

INTERNAL_HEADERS = (NAME_HEADER, CREDENTIALS_HEADER)

# Envoy wants at least one user and one bucket. No key has that name, no secret that digest, and no traffic empties this bucket.
_NOBODY = f"-:{{SHA}}{'A' * 27}="
_BOTTOMLESS = {"max_tokens": 4_000_000_000, "tokens_per_fill": 4_000_000_000, "fill_interval": "1s"}


def early_mutations(*, enforced: bool) -> list[dict[str, Any]]:
    """Header changes before anything else looks at a request: the client's key moves to the internal header, or nowhere."""
    sent = "request.headers"
    chosen = f"'{KEY_HEADER}' in {sent} ? {sent}['{KEY_HEADER}'] : ('authorization' in {sent} ? {sent}['authorization'] : '')"
    return [
        *({"remove": header} for header in INTERNAL_HEADERS),
        *([set_header(CREDENTIALS_HEADER, f"%CEL({chosen})%")] if enforced else []),
        {"remove": KEY_HEADER},
        {"remove": "authorization"},
    ]


def filters() -> list[dict[str, Any]]:
    """The filters that enforce keys, in order. Where a route says nothing else, they refuse everybody."""
    word = {
        "header": CREDENTIALS_HEADER,
        "on_header_present": {
            "metadata_namespace": _NAMESPACE,
            "key": "word",
            "regex_value_rewrite": {"pattern": {"regex": "^(?i:(?:bearer|basic) +)?(.*)$"}, "substitution": r"\1"},
        },
    }
    return [
        _filter("header_to_metadata", "filters.http.header_to_metadata.v3.Config", request_rules=[word]),
        _filter(
            "header_mutation",
            "filters.http.header_mutation.v3.HeaderMutation",
            mutations={"request_mutations": [set_header(CREDENTIALS_HEADER, f"Basic %DYNAMIC_METADATA({_NAMESPACE}:word)%")]},
        ),
        _filter(
            "basic_auth",
            "filters.http.basic_auth.v3.BasicAuth",
            users={"inline_string": _NOBODY},
            forward_username_header=NAME_HEADER,
            authentication_header=CREDENTIALS_HEADER,
        ),
        _filter("local_ratelimit", "filters.http.local_ratelimit.v3.LocalRateLimit", stat_prefix="key"),
        _filter("rbac", "filters.http.rbac.v3.RBAC"),
    ]


def filters_when_routed() -> list[dict[str, Any]]:
    """The filters that must run again once a request has got its route from its body; off unless a route turns them on."""
    return [{**_filter("rbac", "filters.http.rbac.v3.RBAC"), "name": _RBAC_WHEN_ROUTED, "disabled": True}]


def _filter(name: str, message: str, **fields: Any) -> dict[str, Any]:
    return {"name": f"envoy.filters.http.{name}", "typed_config": typed(message, **fields)}


def host_config(keys: Sequence[ApiKey] | None) -> dict[str, Any]:
    """What the filters know of all routes: `typed_per_filter_config` of the virtual host. None: nobody needs a key."""
    if keys is None:
        return {}
    users = "\n".join([_NOBODY, *(f"{key.name}:{{SHA}}{key.sha1}" for key in keys)])
    return {
        _BASIC_AUTH: typed("filters.http.basic_auth.v3.BasicAuthPerRoute", users={"inline_string": users}),
        _RATE_LIMIT: typed(
            "filters.http.local_ratelimit.v3.LocalRateLimit",
            stat_prefix="key",
            filter_enabled={"default_value": {"numerator": 100}},
            filter_enforced={"default_value": {"numerator": 100}},
            token_bucket=_BOTTOMLESS,
            descriptors=[
                {"entries": [{"key": "name", "value": key.name}], "token_bucket": _bucket(key.requests_per_s, key.burst)}
                for key in keys
                if key.requests_per_s is not None
            ],
            rate_limits=[{"actions": [{"request_headers": {"header_name": NAME_HEADER, "descriptor_key": "name"}}]}],
        ),
    }


def _bucket(requests_per_s: float, burst: int) -> dict[str, Any]:
    """Whole tokens in whole seconds: 2.5 a second are 5 in 2 s. Envoy fills the bucket evenly in between."""
    rate = Fraction(requests_per_s).limit_denominator(1000)
    return {"max_tokens": burst, "tokens_per_fill": rate.numerator, "fill_interval": f"{rate.denominator}s"}


def guarded(routes: Iterable[dict[str, Any]], model: str, keys: Sequence[ApiKey] | None) -> Iterator[dict[str, Any]]:
    """The routes of a model, for the keys that may ask it."""
    allowed = [key.name for key in keys or () if key.models is None or model in key.models]
    if keys is None or len(allowed) == len(keys):
        return iter(routes)
    principals = [{"header": {"name": NAME_HEADER, "string_match": {"exact": name}}} for name in allowed]
    policies = {"allowed": {"permissions": [{"any": True}], "principals": principals}} if principals else {}
    config = typed("filters.http.rbac.v3.RBACPerRoute", rbac={"rules": {"action": "ALLOW", "policies": policies}})
    return _with(_with(routes, _RBAC, config), _RBAC_WHEN_ROUTED, config)


def unguarded(routes: Iterable[dict[str, Any]], keys: Sequence[ApiKey] | None) -> Iterator[dict[str, Any]]:
    """Routes that need no key."""
    off = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
    return iter(routes) if keys is None else _with(routes, _BASIC_AUTH, off)


def _with(routes: Iterable[dict[str, Any]], filter_name: str, config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for route in routes:
        yield {**route, "typed_per_filter_config": {**route.get("typed_per_filter_config", {}), filter_name: config}}
