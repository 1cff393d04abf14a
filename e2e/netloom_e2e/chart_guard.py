"""The chart's template of the guard, made from the very manifests that `netloom guard install` prints.

These are rendered with marks in place of what a user chooses, once for every choice that changes their shape: whose
objects are guarded, whose certificates there are, how the guard is reached, and whether the operator is the guard. Then
each object is written down once, what its shapes do not share below conditions, and the marks become actions of the
template.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import yaml

from netloom.webhook.manifests import Installation, render
from netloom.webhook.names import NAME, Guarded, Scope

Manifest = dict[str, Any]
Shape = tuple[str, str, str, str]
"""guarded, authority, reach, runner."""

_AXES = (get_args(Guarded), ("own", "given"), ("service", "url"), ("guard", "operator"))
_EVERY = frozenset(itertools.product(*_AXES))
_VARIABLES = ("$for", "$authority", "$reach", "$runner")
_SCOPE = Scope(
    namespace="zz-namespace-zz",
    cilium_namespace="zz-cilium-namespace-zz",
    operator_users=("zz-operators-zz",),
    agent_users=("zz-agents-zz",),
    guard_users=("zz-users-zz",),
)
_REPLICAS = 98765
_WHOLE = r"^( *)(\w+): zz-whole-zz\n"
"""A part of the pod that a user replaces as a whole. Its default in values.yaml is what the guard's manifests have."""

_HEAD = """\
{{- /* Written by `make chart` from operator/netloom/webhook, which is also what `netloom guard install` prints. */}}
{{- if .Values.guard.enabled }}
{{- $for := include "netloom.guard.for" . }}
{{- $authority := include "netloom.guard.authority" . }}
{{- $reach := ternary "url" "service" (not (empty .Values.guard.url)) }}
{{- $inOperator := include "netloom.guard.inOperator" . }}
{{- $runner := ternary "operator" "guard" (not (empty $inOperator)) }}
"""

# Marks within a line, and what stands there in the template.
_WORDS = {
    "zz-namespace-zz": "{{ .Release.Namespace }}",
    "zz-cilium-namespace-zz": "{{ .Values.guard.ciliumNamespace }}",
    # In a regular expression, inside a string literal of CEL.
    r"zz\\-cilium\\-namespace\\-zz": r'{{ .Values.guard.ciliumNamespace | replace "-" "\\\\-" }}',
    "'zz-operators-zz'": '{{ include "netloom.cel" (include "netloom.guard.operators" . | fromJsonArray) }}',
    "'zz-agents-zz'": '{{ include "netloom.cel" (include "netloom.guard.agents" . | fromJsonArray) }}',
    ", 'zz-users-zz'": '{{ with .Values.guard.users }}, {{ include "netloom.cel" . }}{{ end }}',
    "zz-account-zz": '{{ include "netloom.guard.account" . }}',
    "https://zz-url-zz": '{{ .Values.guard.url | trimSuffix "/" }}',
    "zz-image-zz": '{{ include "netloom.image" . }}',
    "zz-secret-zz": "{{ .Values.guard.tls.secretName | quote }}",
    str(_REPLICAS): "{{ .Values.guard.replicas }}",
}


def _with(value: str, line: str) -> str:
    return f"{{{{- with .Values.guard.{value} }}}}\n{line}\n{{{{- end }}}}\n"


def _for_each(role: str) -> str:
    option = f'{{{{ printf "--{role}-user=%s" . | quote }}}}'
    return f'{{{{- range include "netloom.guard.{role}s" . | fromJsonArray }}}}\n\\1- {option}\n{{{{- end }}}}\n'


# Whole lines, with their indentation.
_LINES = (
    (r"^( *)caBundle: zz-bundle-zz\n", _with("tls.caBundle", "\\1caBundle: {{ . | quote }}")),
    (
        r"^( *)annotations:\n( *)cert-manager.io/inject-ca-from: zz-inject-zz\n",
        _with("tls.injectCaFrom", "\\1annotations:\n\\2cert-manager.io/inject-ca-from: {{ . | quote }}"),
    ),
    (r"^( *)- --operator-user=zz-operators-zz\n", _for_each("operator")),
    (r"^( *)- --agent-user=zz-agents-zz\n", _for_each("agent")),
    (
        r"^( *)(image: zz-image-zz)\n",
        "\\1\\2\n{{- with .Values.image.pullPolicy }}\n\\1imagePullPolicy: {{ . }}\n{{- end }}\n",
    ),
    (
        r"^( *)priorityClassName: [\w-]+\n",
        _with("priorityClassName", "\\1priorityClassName: {{ . }}")
        + _with("nodeSelector", "\\1nodeSelector: {{ toJson . }}")
        + "{{- with .Values.imagePullSecrets }}\n\\1imagePullSecrets: {{ toJson . }}\n{{- end }}\n",
    ),
    (
        r"^( *)- name: POD_NAMESPACE\n",
        '{{- with include "netloom.env" . | trim }}\n{{- . | nindent 8 }}\n{{- end }}\n\\1- name: POD_NAMESPACE\n',
    ),
)


def template() -> str:
    """The text of templates/guard.yaml."""
    texts: dict[tuple[str, str], dict[Shape, str]] = {}
    for shape in itertools.product(*_AXES):
        for each in _marked(*shape):
            texts.setdefault((each["kind"], each["metadata"]["name"]), {})[shape] = _text(each)
    parts = [_object(kind, name, found) for (kind, name), found in texts.items()]
    return _HEAD + "".join(parts) + "{{- end }}\n"


def _marked(guarded: Guarded, authority: str, reach: str, runner: str) -> Iterator[Manifest]:
    """What `netloom guard install` prints, but for the namespace, which is the release's."""
    given = {"tls_secret": "zz-secret-zz", "ca_bundle": "zz-bundle-zz", "inject_ca_from": "zz-inject-zz"}
    url = "https://zz-url-zz" if reach == "url" else ""
    options = given if authority == "given" else {}
    made = Installation(
        scope=replace(_SCOPE, guarded=guarded),
        image="zz-image-zz",
        url=url,
        replicas=_REPLICAS,
        in_operator=runner == "operator",
        **options,
    )
    for each in render(made):
        if each["kind"].endswith("Binding") and "subjects" in each:
            each["subjects"][0]["name"] = "zz-account-zz"
        if each["kind"] == "Deployment":
            pod = each["spec"]["template"]["spec"]
            pod["affinity"] = pod["tolerations"] = pod["containers"][0]["resources"] = "zz-whole-zz"
        if each["kind"] == "Service":
            each["spec"]["selector"] = {"app.kubernetes.io/name": "zz-account-zz"}
        if each["kind"] != "Namespace":
            yield each


def _object(kind: str, name: str, found: Mapping[Shape, str]) -> str:
    """The object as a part of the template, below the condition under which it is there at all."""
    conditions = list(_condition(frozenset(found), _EVERY))
    if kind in ("Deployment", "PodDisruptionBudget") or (kind, name) == ("ServiceAccount", NAME):
        conditions.append("not $inOperator")
    if kind == "PodDisruptionBudget":
        conditions.append("gt (int .Values.guard.replicas) 1")
    return _below(conditions, f"---\n{_filled(_merged(found))}")


def _below(conditions: Sequence[str], text: str) -> str:
    if not conditions:
        return text
    condition = conditions[0] if len(conditions) == 1 else f"and {' '.join(f'({each})' for each in conditions)}"
    return f"{{{{- if {condition} }}}}\n{text}{{{{- end }}}}\n"


def _merged(found: Mapping[Shape, str]) -> str:
    """One text for all shapes: what they have in common once, and the rest below conditions."""
    lines: list[tuple[str, frozenset[Shape]]] = []
    for shape, text in found.items():
        new, merged = text.splitlines(keepends=True), []
        matcher = difflib.SequenceMatcher(None, [line for line, _ in lines], new, autojunk=False)
        for what, begin, end, first, last in matcher.get_opcodes():
            if what == "equal":
                merged += [(line, shapes | {shape}) for line, shapes in lines[begin:end]]
            else:
                merged += lines[begin:end] + [(line, frozenset([shape])) for line in new[first:last]]
        lines = merged
    for shape, text in found.items():
        assert "".join(line for line, shapes in lines if shape in shapes) == text
    groups = itertools.groupby(lines, key=lambda each: each[1])
    every = frozenset(found)
    return "".join(_below(list(_condition(some, every)), "".join(line for line, _ in each)) for some, each in groups)


def _condition(some: frozenset[Shape], every: frozenset[Shape]) -> Iterator[str]:
    """What holds for some of the shapes and not for the others."""
    axes = [sorted({shape[axis] for shape in some}) for axis in range(len(_AXES))]
    assert some == set(itertools.product(*axes)) & every, f"{sorted(some)} are no product of choices"
    for axis, (variable, values) in enumerate(zip(_VARIABLES, axes, strict=True)):
        if len(values) < len({shape[axis] for shape in every}):
            yield f'eq {variable} "{values[0]}"' if len(values) == 1 else f"has {variable} (list {_quoted(values)})"


def _quoted(texts: Iterable[str]) -> str:
    return " ".join(f'"{each}"' for each in texts)


class _Dumper(yaml.SafeDumper):
    """Expressions stand in literal blocks: nothing is escaped in there, so that a template may fill something in."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _as_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    literal = len(text) > 60 or any(each in text for each in "'\"{}")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if literal else None)


_Dumper.add_representer(str, _as_text)


def _text(manifest: Manifest) -> str:
    """The manifest with its marks."""
    text: str = yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=10**6)
    assert "{{" not in text, "Helm would take that for an action"
    return text


def _whole(found: re.Match[str]) -> str:
    indent, key = found.groups()
    deeper = len(indent) + 2
    return f"{indent}{key}:\n{' ' * deeper}{{{{- toYaml .Values.guard.{key} | nindent {deeper} }}}}\n"


def _filled(text: str) -> str:
    """With actions in place of the marks."""
    text = re.sub(_WHOLE, _whole, text, flags=re.MULTILINE)
    for pattern, line in _LINES:
        text = re.sub(pattern, line, text, flags=re.MULTILINE)
    for mark, word in _WORDS.items():
        text = text.replace(mark, word)
    assert "zz" not in text, f"a mark is left: {text}"
    return text
