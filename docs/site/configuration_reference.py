"""The reference of the configuration, from its JSON schema: every key with its type, range, default and meaning."""

from __future__ import annotations

import json
from typing import Any

from kexue_train.pipeline.run_config import RunConfig

Schema = dict[str, Any]
_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}

_INTRODUCTION = """\
One YAML file describes a run. On the command line a key is written with dots, such as `train.steps=2000`. A key without
a default must be given. An unknown key is refused with the nearest known one."""


def configuration_reference() -> str:
    """Return the page: a part for each section of a run's file, and for each section within one."""
    schema = RunConfig.model_json_schema()
    parts = [
        "# Configuration keys",
        _INTRODUCTION,
        "## The file",
        _table(schema, schema, ""),
    ]
    for name, about in schema["properties"].items():
        if (section := _section(about, schema)) is not None:
            parts += _parts(name, about, section, schema)
    return "\n\n".join([*parts, ""])


def _parts(path: str, about: Schema, section: Schema, schema: Schema) -> list[str]:
    """Return the headings, texts and tables of ``section`` and of the sections in it."""
    text = about.get("description") or section.get("description", "")
    parts = [f"{'##' if '.' not in path else '###'} {path}", _prose(text), _table(section, schema, path)]
    for name, inner in section["properties"].items():
        if (found := _section(inner, schema)) is not None:
            parts += _parts(f"{path}.{name}", inner, found, schema)
    return parts


def _section(about: Schema, schema: Schema) -> Schema | None:
    """Return the one class of settings that a key holds; None if it holds a value or one of several forms."""
    classes = [form for form in _forms(about, schema) if "properties" in form]
    others = [form for form in _forms(about, schema) if "properties" not in form and form.get("type") != "null"]
    return classes[0] if len(classes) == 1 and not others else None


def _forms(about: Schema, schema: Schema) -> list[Schema]:
    if "$ref" in about:
        return _forms(schema["$defs"][about["$ref"].rpartition("/")[2]], schema)
    if "properties" in about or "anyOf" not in about:
        return [about]
    return [form for one in about["anyOf"] for form in _forms(one, schema)]


def _table(section: Schema, schema: Schema, path: str) -> str:
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, about in section["properties"].items():
        if (inner := _section(about, schema)) is not None:
            key = f"{path}.{name}".lstrip(".")
            value = f"[section](#{key.replace('.', '').lower()})"
            default = "none" if about.get("default", 0) is None else ""
            text = about.get("description") or inner.get("description", "")
        else:
            value = " or ".join(dict.fromkeys(_value(form, schema) for form in _forms(about, schema)))
            default = f"`{_as_yaml(about['default'])}`" if "default" in about else "*required*"
            text = about.get("description", "")
        rows.append(f"| `{name}` | {value} | {default} | {_prose(text).replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def _value(form: Schema, schema: Schema) -> str:
    if "enum" in form or "const" in form:
        return " · ".join(f"`{_as_yaml(value)}`" for value in form.get("enum", [form.get("const")]))
    if "properties" in form:
        return "{" + ", ".join(f"`{name}`" for name in form["properties"]) + "}"
    if form.get("type") == "array":
        items = form.get("items", {})
        inner = " or ".join(dict.fromkeys(_value(one, schema) for one in _forms(items, schema))) if items else "values"
        return f"list of {inner}"
    if form.get("type") == "object":
        return "keys with values"
    kind = {"null": "null", "integer": "integer", "number": "number", "boolean": "`true` · `false`", "string": "text"}
    limits = [f"{sign} {form[limit]:,}" for limit, sign in _LIMITS.items() if limit in form]
    return " ".join([kind.get(form.get("type", ""), "value"), *([", ".join(limits)] if limits else [])])


def _as_yaml(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _prose(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")
