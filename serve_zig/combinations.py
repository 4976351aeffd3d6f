"""Keys that contradict one another, or have no effect beside another one.

Two keys that were both written and contradict each other are refused, and so is what can have no
effect at all. A default gives way to what was written; what is only switched off is a warning.
"""

from __future__ import annotations

from serve_zig.addresses import collide, parse_address
from serve_zig.kinds import size_text
from serve_zig.schema import KEYS_BY_PATH
from serve_zig.toml_format import string as quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from serve_zig.config import Config
    from serve_zig.kinds import Value

_LINE_IN_HEAD = "the line is part of the head"

# The first is a part of the second.
_PARTS = (
    ("limits.body_memory", "limits.body", "no body is longer; lower the first or raise the other"),
    (
        "limits.response_memory",
        "limits.buffer_memory",
        "all bodies and responses share that; lower the first or raise the other",
    ),
)

# The first says how the second is done, which is 0 for not at all.
_MANNERS = (
    ("limits.requests_jitter", "limits.requests", "it is added to that"),
    ("timeouts.request_action", "timeouts.request", "it happens past that time"),
)

# The same, for what is switched on and off from outside of the file: no reason not to start.
_SETTINGS: tuple[tuple[str, str, Value], ...] = (
    ("log.access_exclude", "log.access", "off"),
    ("telemetry.sample_ratio", "telemetry.otlp_endpoint", ""),
    ("telemetry.service_name", "telemetry.otlp_endpoint", ""),
    ("proxy.headers", "proxy.trusted", []),
)


def check_combinations(
    config: Config, values: dict[str, Value], written: set[str], problems: list[str]
) -> None:
    """Add what contradicts itself to ``problems``, and what does nothing to the warnings."""
    line_bytes, head_bytes = config.integer("limits.request_line"), config.integer("limits.head")
    if line_bytes > head_bytes:
        if "limits.request_line" in written:
            problems.append(_too_much(config, "limits.request_line", "limits.head", _LINE_IN_HEAD))
        values["limits.request_line"] = head_bytes
    for part, whole, why in _PARTS:
        if config.integer(part) <= config.integer(whole):
            continue
        # A default gives way, on whichever side it is.
        if part not in written:
            values[part] = config.integer(whole)
        elif whole in written:
            problems.append(_too_much(config, part, whole, why))
        else:
            values[whole] = config.integer(part)
            config.warnings.append(
                f"{config.place(part)}: {whole} is {size_text(config.integer(part))} as well, "
                f"instead of {KEYS_BY_PATH[whole].default_toml}; set it"
            )
    for manner, deed, why in _MANNERS:
        if config.value(manner) != KEYS_BY_PATH[manner].default and not config.value(deed):
            problems.append(
                f"{config.place(manner)}: has no effect without {deed}, which is 0; {why}: set "
                f"{deed}, or leave {manner} out"
            )
    for setting, switch, off in _SETTINGS:
        if config.value(setting) != KEYS_BY_PATH[setting].default and config.value(switch) == off:
            config.warnings.append(
                f"{config.place(setting)}: has no effect without {switch}, which is not set"
            )
    if config.boolean("proxy.protocol") and not config.strings("proxy.trusted"):
        problems.append(
            f"{config.place('proxy.protocol')}: nobody is asked for a PROXY header, since "
            "proxy.trusted is empty; name the proxies there"
        )
    _check_addresses(config, problems)


def _too_much(config: Config, part: str, whole: str, why: str) -> str:
    size, most = size_text(config.integer(part)), size_text(config.integer(whole))
    return f"{config.place(part)}: {size} is more than {whole} allows, {most}; {why}"


def _check_addresses(config: Config, problems: list[str]) -> None:
    """Refuse an address that both keys name, before the system says that somebody has taken it."""
    own = config.text("admin.bind")
    if not own:
        return
    for address in map(parse_address, config.strings("listen.bind")):
        if collide(parse_address(own), address):
            problems.append(
                f"{config.place('admin.bind')}: {quoted(own)} is taken by listen.bind "
                f"({quoted(address.text)}); the admin listener has an address of its own, or "
                "admin.in_band answers health checks on those of listen.bind"
            )
