"""JSON Schema of the files people write, with the options of every plug-in that comes with clray, for editors."""

from __future__ import annotations

from typing import Any

from clray import plugins
from clray.config import Experiment, Sweep
from clray.documents import LISTS, PLUGIN_TABLES

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(kind: str) -> dict[str, Any]:
    """The schema of an ``experiment`` or ``sweep`` file (JSON Schema 2020-12)."""
    experiment = _experiment()
    if kind == "experiment":
        return {**experiment, "$schema": DIALECT, "title": "clray experiment"}
    sweep = Sweep.model_json_schema()
    definitions = experiment.pop("$defs") | sweep.pop("$defs", {})
    # A base experiment may leave to the axes what they vary, so nothing in it is required here.
    definitions["Experiment"] = {key: value for key, value in experiment.items() if key != "required"}
    sweep["properties"]["experiment"] = {
        "anyOf": [{"$ref": "#/$defs/Experiment"}, {"type": "string", "description": "path of an experiment file"}]
    }
    return {**sweep, "$schema": DIALECT, "title": "clray sweep", "$defs": definitions}


def _experiment() -> dict[str, Any]:
    schema = Experiment.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    for field, kind in PLUGIN_TABLES.items():
        variants = []
        for name in plugins.names(kind):
            options = plugins.options_class(kind, name).model_json_schema(ref_template="#/$defs/{model}")
            definitions |= options.pop("$defs", {})
            options["properties"]["name"] = {"const": name}
            definitions[f"{field}.{name}"] = options
            variants.append({"$ref": f"#/$defs/{field}.{name}"})
        own = {"type": "object", "properties": {"name": {"type": "string", "pattern": ":"}}, "required": ["name"]}
        one = {"anyOf": [*variants, {**own, "description": "package.module:attribute"}]}
        if field == "loggers":
            one = {"anyOf": [{"type": "string", "enum": plugins.names(kind)}, {"type": "string", "pattern": ":"}, *one["anyOf"]]}
        several = {"anyOf": [one, {"type": "array", "items": one, "minItems": int(field == "strategy")}]}
        schema["properties"][field] = several if field in LISTS else one
    schema["required"] = [key for key in schema.get("required", []) if key != "strategy"]
    return schema
