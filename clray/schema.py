"""JSON Schema of the files people write, with the options of every plug-in that comes with clray, for editors."""

from __future__ import annotations

from typing import Any

from clray import plugins
from clray.config import Experiment, Sweep
from clray.documents import LISTS, PLUGIN_TABLES
from clray.reproduce.published import Published
from clray.study.config import Study

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(kind: str) -> dict[str, Any]:
    """The schema of an ``experiment``, ``study``, ``sweep`` or ``published`` file (JSON Schema 2020-12)."""
    if kind == "published":
        return {**Published.model_json_schema(), "$schema": DIALECT, "title": "clray published"}
    models: dict[str, type[Experiment]] = {"experiment": Experiment, "study": Study}
    if kind != "sweep":
        return {**_experiment(models[kind]), "$schema": DIALECT, "title": f"clray {kind}"}
    sweep = Sweep.model_json_schema()
    definitions = sweep.pop("$defs", {})
    for name, model in (("Experiment", Experiment), ("Study", Study)):
        one = _experiment(model)
        definitions |= one.pop("$defs")
        # A base experiment may leave to the axes what they vary, so nothing but what tells a study apart is required here.
        definitions[name] = {key: value for key, value in one.items() if key != "required"}
    definitions["Study"]["required"] = ["study"]
    sweep["properties"]["experiment"] = {
        "anyOf": [
            {"$ref": "#/$defs/Experiment"},
            {"$ref": "#/$defs/Study"},
            {"type": "string", "description": "path of an experiment file"},
        ]
    }
    return {**sweep, "$schema": DIALECT, "title": "clray sweep", "$defs": definitions}


def _experiment(model: type[Experiment]) -> dict[str, Any]:
    schema = model.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    for field, kind in PLUGIN_TABLES.items():
        one = _plugin(field, kind, definitions)
        if field == "loggers":
            one = {"anyOf": [{"type": "string", "enum": plugins.names(kind)}, {"type": "string", "pattern": ":"}, *one["anyOf"]]}
        several = {"anyOf": [one, {"type": "array", "items": one, "minItems": int(field == "strategy")}]}
        schema["properties"][field] = several if field in LISTS else one
    if model is Study:
        by_name = {"type": "string", "enum": plugins.names("selections")}
        definitions["Memory"]["properties"]["methods"]["items"] = {"anyOf": [by_name, _plugin("selection", "selections", definitions)]}
    schema["required"] = [key for key in schema.get("required", []) if key != "strategy"]
    return schema


def _plugin(field: str, kind: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of one table with the options of a plug-in; what it refers to goes into ``definitions``."""
    variants = []
    for name in plugins.names(kind):
        options = plugins.options_class(kind, name).model_json_schema(ref_template="#/$defs/{model}")
        definitions |= options.pop("$defs", {})
        options["properties"]["name"] = {"const": name}
        definitions[f"{field}.{name}"] = options
        variants.append({"$ref": f"#/$defs/{field}.{name}"})
    own = {"type": "object", "properties": {"name": {"type": "string", "pattern": ":"}}, "required": ["name"]}
    return {"anyOf": [*variants, {**own, "description": "package.module:attribute"}]}
