"""Reading ``kmon.yaml``, and errors that name file, line, key and the nearest valid name."""

from __future__ import annotations

import hashlib
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from kmon import environment
from kmon.config.checks import InconsistentError, Loc
from kmon.config.models import Config
from kmon.config.words import nearest
from kmon.errors import ConfigError, KmonError

NO_KEYS = ("path", "copied", "digest")
"""What a configuration knows that the file does not say."""
_COPY = re.compile(r"\n# kmon runs by this copy of (?P<path>.+)\n\Z")


class _Loader(yaml.SafeLoader):
    """Leaves a date that there is not, such as 2026-02-30, as text: the model says at which key it stands."""


def _timestamp(loader: _Loader, node: yaml.ScalarNode) -> Any:
    try:
        return loader.construct_yaml_timestamp(node)
    except ValueError:
        return loader.construct_scalar(node)


_Loader.add_constructor("tag:yaml.org,2002:timestamp", _timestamp)


def copy_config(path: Path, to: Path) -> Config:
    """Copy a ``kmon.yaml`` to `to`, which stands for it from then on; ConfigError, as `load_config`, where it is bad.

    KmonError where it cannot be copied.

    The copy keeps the path of the original, in which the names of files are resolved and errors told.
    """
    load_config(path)  # an error that the original has is its own
    try:
        text = path.read_text(encoding="utf-8-sig")
        to.write_text(f"{text}\n# kmon runs by this copy of {path.absolute()}\n", encoding="utf-8")
    except OSError as error:
        message = f"the folder {to.parent} cannot be written ({error.strerror}): kmon keeps its files there"
        raise KmonError(message) from error
    return load_config(to)


def load_config(path: str | Path = "kmon.yaml") -> Config:
    """Read and check a ``kmon.yaml``.

    Raises ConfigError with file, line, key and the nearest valid name; nothing is read but the file and the
    environment variables that it names.
    """
    path, copied = Path(path), None
    try:
        text = path.read_text(encoding="utf-8-sig")
        if (copy := _COPY.search(text)) is not None:
            copied, path, text = path.absolute(), Path(copy["path"]), text[: copy.start()]
        node, data = yaml.compose(text, Loader=yaml.SafeLoader), yaml.load(text, _Loader)  # noqa: S506
    except FileNotFoundError:
        message = f"{path} does not exist: create one with 'kmon init', or name yours with --config"
        raise ConfigError(message) from None
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise ConfigError(message) from error
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        message = f"{path}, line {number}: not UTF-8: save the file in that encoding"
        raise ConfigError(message) from error
    except RecursionError:
        message = f"{path}: nested too deeply"
        raise ConfigError(message) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "a control character"
        message = f"{path}{line}: not valid YAML: {problem}"
        raise ConfigError(message) from error
    if not isinstance(data, dict):
        message = f"{path}: the file is empty or not a mapping of keys to values"
        raise ConfigError(message)
    try:
        twice = next(_twice(node), None)
    except RecursionError:  # an alias inside what it stands for
        message = f"{path}: nested too deeply"
        raise ConfigError(message) from None
    if twice is not None:
        raise _config_error(path, node, twice, "the key is there twice", last=True)
    for key in NO_KEYS:
        if key in data:
            raise _config_error(path, node, (key,), f"unknown key {key!r}")
    told = {"path": path.absolute(), "copied": copied, "digest": hashlib.sha256(text.encode()).hexdigest()}
    try:
        return Config.model_validate({**_expanded(data, path, node), **told})
    except ValidationError as error:
        found = error.errors()
        first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])  # a typo explains what is missing
        cause = (first.get("ctx") or {}).get("error")
        if isinstance(cause, InconsistentError):
            raise _config_error(path, node, cause.loc, str(cause)) from error
        raise _config_error(path, node, first["loc"], _explain(first)) from error


def error_at(path: Path, loc: Loc, message: str) -> ConfigError:
    """An error that is seen only later, told with the line of its key as the file has it now."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return ConfigError(f"{path}: {'.'.join(map(str, loc))}: {message}")
    return _config_error(path, node, loc, message)


def _twice(node: yaml.Node | None, loc: Loc = ()) -> Iterator[Loc]:
    """The places of keys that stand twice in their section; YAML itself silently takes the last."""
    if isinstance(node, yaml.MappingNode):
        keys = [str(key.value) for key, _ in node.value]
        yield from ((*loc, key) for i, key in enumerate(keys) if key in keys[:i])
        for key, value in node.value:
            yield from _twice(value, (*loc, str(key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _twice(value, (*loc, i))


def _expanded(value: Any, path: Path, root: yaml.Node | None, loc: tuple[str | int, ...] = ()) -> Any:
    if isinstance(value, dict):
        return {key: _expanded(item, path, root, (*loc, str(key))) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, path, root, (*loc, i)) for i, item in enumerate(value)]
    if isinstance(value, str) and "${" in value:
        try:
            return environment.expand(value)
        except KeyError as error:
            raise _config_error(path, root, loc, f"the environment variable {error.args[0]} is not set") from None
    return value


def _explain(error: Any) -> str:
    loc, given, context = error["loc"], error["input"], error.get("ctx") or {}
    match error["type"]:
        case "extra_forbidden":
            known = _keys_at(loc[:-1])
            text = f"unknown key {loc[-1]!r}" + (f"; {nearest(str(loc[-1]), known)}" if known else "")
        case "missing":
            text = f"the key {loc[-1]!r} is missing"
        case "union_tag_not_found":
            text = "the key 'kind' is missing"
        case "union_tag_invalid":
            tags = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
            text = f"{context['tag']!r} is not a kind; {nearest(context['tag'], tags)}"
        case "literal_error":
            choices = re.findall(r"'([^']*)'", context["expected"])
            text = f"{given!r} is not allowed; {nearest(str(given), choices)}"
        case "value_error":
            text = str(context["error"])
        case _:
            text = error["msg"][0].lower() + error["msg"][1:]
            text = text if isinstance(given, dict | list) else f"{given!r}: {text}"
    return text


def _keys_at(loc: tuple[str | int, ...]) -> list[str]:
    """The valid keys of the section at `loc`."""
    here: Any = Config
    for step in loc:
        here = _step_into(here, step)
    return (
        [found.alias or key for key, found in here.model_fields.items() if here is not Config or key not in NO_KEYS]
        if isinstance(here, type) and issubclass(here, BaseModel)
        else []
    )


def _step_into(annotation: Any, step: str | int) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.model_fields[str(step)].annotation if step in annotation.model_fields else annotation
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    arguments = [a for a in typing.get_args(annotation) if a is not type(None) and a is not Ellipsis]
    models = [a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)]
    for model in models:  # a tagged union: pydantic's location has the tag as a step of its own
        if "kind" in model.model_fields and step in typing.get_args(model.model_fields["kind"].annotation):
            return model
    return arguments[-1] if arguments else None


def _config_error(
    path: Path, root: yaml.Node | None, loc: tuple[Any, ...], message: str, *, last: bool = False
) -> ConfigError:
    line, key = _locate(root, loc, last=last)
    return ConfigError(f"{path}, line {line}: {key}: {message}" if key else f"{path}, line {line}: {message}")


def _locate(node: yaml.Node | None, loc: tuple[Any, ...], *, last: bool) -> tuple[int, str]:
    """The line of the deepest node along `loc` that the file has, and the key's dotted name."""
    line, keys = 1, []
    for step in loc:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(step)]
            if not found:
                continue  # a missing key, or pydantic's name for a member of a union
            key, node = found[-1 if last else 0]
            line = key.start_mark.line + 1
            keys.append(str(step))
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
            keys.append(str(step))
    return line, ".".join(keys)
