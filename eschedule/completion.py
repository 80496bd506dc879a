"""Completion of command lines: which words may come next, from the parsers themselves, with the names that are in etcd now.

``eschedule completion bash|zsh|fish`` prints what a shell is to read; that calls ``eschedule __complete WORD…``, whose last
word is the one at the cursor as far as it was typed. The answer is a word a line; the line ``:files`` has the shell add the
names of files. Imports neither gRPC nor requests: a shell waits for it at each Tab.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import EcomputeError
from eschedule.command_line.parser import descend
from eschedule.output import CUSTOM, FORMS

if TYPE_CHECKING:
    from common.config import EtcdConfig

FILES = ":files"
Names = Callable[[str], Iterable[str]]
# What a word stands for, by where the parser puts it; for "name" it is the verb that says it.
_KINDS = {
    "instance": "instances", "instances": "instances", "image": "images", "image_argument": "images", "key": "keys",
    "hosts": "hosts", "volume": "volumes", "source": "instances", "whom_and_labels": "instances",
    "whom_and_query": "instances", "selector": "labels",
    "like": "instances", "host": "hosts", "zone": "zones",
}  # fmt: skip
_NAMED_BY_VERB = {"host": "hosts", "image": "images", "key": "keys", "network": "networks", "volume": "volumes"}
_MAKES_A_NAME = ("add", "create")  # where a name is a new one
_WITH_FILES = ("images", "keys")  # may be a path, too
_WORDS = {
    "output": (*FORMS, CUSTOM), "restart": ("never", "on-failure", "always"), "metadata": ("optional", "required", "off"),
    "policy": ("anti-affinity", "soft-anti-affinity", "affinity", "soft-affinity"), "wait": ("running", "ready"),
    "goal": ("running", "stopped", "paused", "suspended", "ready", "healthy", "gone"),
    "sort": ("cpu", "memory", "disk", "net"),
    "query": ("resources=",),
}  # fmt: skip


def complete(words: Sequence[str], parser_of: Callable[[str | None], argparse.ArgumentParser], names: Names) -> list[str]:
    """What may stand in place of the last of *words*, which follow the program's name.

    Args:
        parser_of: the parser that knows a verb, or all of them for None.
        names: of a kind, such as "instances"; asked only where they can come next.
    """
    *before, current = words or [""]
    verb = next((word for word in before if not word.startswith("-")), None)
    if verb is not None and "=" in verb:  # the short form of a request
        verb, before = "create", ["create", *before]
    parser, rest, path = descend(parser_of(verb), before)
    option, attached = _open_option(parser, rest, current)
    if option is not None:
        prefix = current[: len(current) - len(attached)]
        return [prefix + word if word != FILES else word for word in _of(option, path, attached, names)]
    if current.startswith("-"):
        return _starting(current, (name for action in parser._actions for name in action.option_strings))
    place = _next_positional(parser, rest)
    return _of(place, path, current, names) if place else []


def _open_option(
    parser: argparse.ArgumentParser, rest: Sequence[str], current: str
) -> tuple[argparse.Action | None, str]:  # fmt: skip
    """The option whose value is at the cursor, and what of that was typed; None where none is."""
    options = parser._option_string_actions
    name, equals, attached = current.partition("=")
    if equals and name in options and options[name].nargs != 0:
        return options[name], attached
    if rest and rest[-1] in options and options[rest[-1]].nargs != 0:
        return options[rest[-1]], current
    return None, ""


def _next_positional(parser: argparse.ArgumentParser, rest: Sequence[str]) -> argparse.Action | None:
    options, taken, is_value = parser._option_string_actions, 0, False
    for word in rest:
        if is_value:
            is_value = False
        elif word.startswith("-"):
            is_value = word in options and options[word].nargs != 0
        else:
            taken += 1
    places = [action for action in parser._actions if not action.option_strings]
    if taken < len(places):
        return places[taken]
    return places[-1] if places and places[-1].nargs in ("+", "*") else None


def _of(action: argparse.Action, path: Sequence[str], typed: str, names: Names) -> list[str]:
    """Words for *action* that begin with what was *typed*."""
    if action.choices is not None:
        return _starting(typed, map(str, action.choices))
    if action.dest in _WORDS:
        return _starting(typed, _WORDS[action.dest])
    kind = _KINDS.get(action.dest)
    if action.dest == "name" and path and path[-1] not in _MAKES_A_NAME:
        kind = _NAMED_BY_VERB.get(path[0])
    if kind is None:
        metavar = action.metavar if isinstance(action.metavar, str) else ""
        return [FILES] if any(word in metavar for word in ("FILE", "PATH")) else []
    also = ("resources=",) if action.dest == "whom_and_query" else ()
    return [*_starting(typed, (*names(kind), *also)), *([FILES] if kind in _WITH_FILES and action.dest != "name" else [])]


def _starting(typed: str, words: Iterable[str]) -> list[str]:
    return sorted({word for word in words if word.startswith(typed)})


# -- names ---------------------------------------------------------------------------------------------------------------


def names_in(config: EtcdConfig) -> Names:
    """The names of each kind in etcd; none where it does not answer."""

    def names(kind: str) -> list[str]:
        from common.keys import Keys  # noqa: PLC0415 - only where names are wanted
        from eschedule.etcd_names import fields_below, keys_below, objects_below  # noqa: PLC0415

        keys = Keys(config.prefix)
        if kind == "hosts":
            return fields_below(config, keys.hosts(), "name")
        if kind == "labels":
            labels = [label for found in objects_below(config, keys.specs(), "labels") for label in found.items()]
            return [word for name, value in labels for word in (name, f"{name}={value}")]
        if kind == "zones":
            return [found["zone"] for found in objects_below(config, keys.host_admins(), "labels") if "zone" in found]
        prefixes = {"instances": keys.names(), "images": keys.images(), "keys": keys.ssh_keys(), "networks": keys.networks()}
        prefixes["volumes"] = keys.volume_names()
        return keys_below(config, prefixes[kind]) if kind in prefixes else []

    return names


def answer(words: Sequence[str], parser_of: Callable[[str | None], argparse.ArgumentParser]) -> str:
    """What ``eschedule __complete`` prints; never an error, which would end up in somebody's command line."""
    from common.config import load_schedule  # noqa: PLC0415 - imports yaml

    def names(kind: str) -> Iterable[str]:
        try:
            config = load_schedule(_config_of(words))
        except EcomputeError:
            return []
        return names_in(config.etcd)(kind)

    return "".join(f"{word}\n" for word in complete(words, parser_of, names))


def _config_of(words: Sequence[str]) -> Path | None:
    for at, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == "--config" and (equals or at + 1 < len(words)):
            return Path(value if equals else words[at + 1])
    return None


# -- what shells read ----------------------------------------------------------------------------------------------------

_BASH = """\
# bash completion of eschedule: source <(eschedule completion bash)
_eschedule() {
  local line current=${COMP_WORDS[COMP_CWORD]} words=() at=1
  # bash splits words at = and :, the program does not.
  local typed=${COMP_LINE:0:COMP_POINT}
  read -ra words <<<"$typed"
  [[ $typed == *[[:space:]] ]] && words+=("")
  local whole=${words[-1]-} before
  before=${whole%"$current"}
  COMPREPLY=()
  while IFS= read -r line; do
    if [[ $line == :files ]]; then
      compopt -o filenames 2>/dev/null
      while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -f -- "$current")
    else
      COMPREPLY+=("${line#"$before"}")
      [[ $line == *= ]] && compopt -o nospace 2>/dev/null
    fi
  done < <("${words[0]}" __complete "${words[@]:at}" 2>/dev/null)
}
complete -F _eschedule eschedule
"""
_ZSH = """\
#compdef eschedule
# zsh completion of eschedule: source <(eschedule completion zsh)
_eschedule() {
  local -a answers
  local files=0 line
  while IFS= read -r line; do
    if [[ $line == :files ]]; then files=1; else answers+=("$line"); fi
  done < <("${words[1]}" __complete "${(@Q)words[2,CURRENT]}" 2>/dev/null)
  compadd -a answers
  (( files )) && _files
}
compdef _eschedule eschedule
"""
_FISH = """\
# fish completion of eschedule: eschedule completion fish | source
function __eschedule_complete
  set -l words (commandline -opc) (commandline -ct)
  for line in ($words[1] __complete $words[2..-1] 2>/dev/null)
    if test $line = :files
      __fish_complete_path (commandline -ct)
    else
      echo $line
    end
  end
end
complete -c eschedule -f -a '(__eschedule_complete)'
"""


def script(shell: str) -> str:
    """What *shell* is to read."""
    return {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}[shell]
