"""What goes along with a dictionary into other formats: model, site, and settings that overtone does not use."""

import re
from typing import Any

# overtone's sites by their names in TransformerLens, which SAELens and its heirs use.
HOOKS = {
    "resid": "blocks.{}.hook_resid_post",
    "mlp_in": "blocks.{}.hook_mlp_in",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "attn_out": "blocks.{}.hook_attn_out",
}


def hook_name(site: str) -> str:
    """TransformerLens' name of a site such as "resid.3"; the site's own name where it has none."""
    found = re.fullmatch(r"(\w+)\.(\d+)", site)
    return HOOKS[found[1]].format(found[2]) if found and found[1] in HOOKS else site


def layer_of(site: str) -> int | None:
    """The block that a site belongs to: the first number in its name."""
    found = re.search(r"(?<![\w])(\d+)(?![\w])", site)
    return int(found[1]) if found else None


def kept(info: dict[str, Any], name: str) -> dict[str, Any]:
    """The settings of the file that a dictionary was read from, where that was of this format."""
    config = info.get("config") if info.get("format") == name else None
    return dict(config) if isinstance(config, dict) else {}
