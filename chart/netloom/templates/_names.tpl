{{/* What several templates say. */}}

{{- define "netloom.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* Whether an upgrade is to another image, which is looked at before: "true" or "". Without a cluster there is nothing to
compare with. */}}
{{- define "netloom.image.checked" -}}
{{- if and .Release.IsUpgrade .Values.image.checkUpgrades }}
{{- $image := include "netloom.image" . }}
{{- $other := false }}
{{- range list "DaemonSet/netloom-agent" "Deployment/netloom-operator" "Deployment/netloom-guard" }}
{{- $words := splitList "/" . }}
{{- with lookup "apps/v1" (first $words) $.Release.Namespace (last $words) }}
{{- if ne (first .spec.template.spec.containers).image $image }}{{ $other = true }}{{ end }}
{{- end }}
{{- end }}
{{- if $other }}true{{ end }}
{{- end }}
{{- end }}

{{/* Whether there is an operator, and so whether it is the guard: "true" or "". */}}
{{- define "netloom.operator" -}}
{{- if and .Values.agent.enabled .Values.operator.enabled }}true{{ end }}
{{- end }}
{{- define "netloom.guard.inOperator" -}}
{{- if and .Values.guard.enabled (not .Values.guard.url) (include "netloom.operator" .) }}true{{ end }}
{{- end }}

{{/* Whether this release had no agents before: "true" or "". */}}
{{- define "netloom.agents.new" -}}
{{- if .Values.agent.enabled }}
{{- if .Release.IsInstall }}true{{ else if not (lookup "apps/v1" "DaemonSet" .Release.Namespace "netloom-agent") }}true{{ end }}
{{- end }}
{{- end }}

{{/* Of another type, the default's rollingUpdate is not meant. */}}
{{- define "netloom.strategy" -}}
{{- $of := . | default dict }}
{{- toYaml (ternary $of (omit $of "rollingUpdate") (eq ($of.type | default "RollingUpdate") "RollingUpdate")) }}
{{- end }}

{{/* Of pods of hooks: as of those that run the same image for long, so that a namespace's quota lets them in as well. */}}
{{- define "netloom.hook.resources" -}}
{{- with ternary .Values.operator.resources .Values.guard.resources .Values.agent.enabled }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "netloom.env" -}}
{{- with .Values.k8sServiceHost }}
- {name: KUBERNETES_SERVICE_HOST, value: {{ . | quote }}}
{{- end }}
{{- with .Values.k8sServicePort }}
- {name: KUBERNETES_SERVICE_PORT, value: {{ . | toString | quote }}}
{{- end }}
{{- if .Values.debug.enabled }}
- {name: NETLOOM_LOG_LEVEL, value: debug}
{{- end }}
{{- end }}

{{/* Whose objects are guarded, by whose word, and with which certificates. */}}
{{- define "netloom.guard.for" -}}
{{- .Values.guard.for | default (ternary "netloom" "cilium" .Values.agent.enabled) }}
{{- end }}
{{- define "netloom.guard.authority" -}}
{{- with .Values.guard.tls }}{{ if or .secretName .caBundle .injectCaFrom }}given{{ else }}own{{ end }}{{ end }}
{{- end }}
{{- define "netloom.guard.operators" -}}
{{- prepend (.Values.guard.operatorUsers | default list) (printf "system:serviceaccount:%s:netloom-operator" .Release.Namespace) | toJson }}
{{- end }}
{{- define "netloom.guard.agents" -}}
{{- prepend (.Values.guard.agentUsers | default list) (printf "system:serviceaccount:%s:netloom-agent" .Release.Namespace) | toJson }}
{{- end }}
{{/* Whose rights the guard has: those of the operator, or its own. */}}
{{- define "netloom.guard.account" -}}
{{- if include "netloom.guard.inOperator" . }}netloom-operator{{ else }}netloom-guard{{ end }}
{{- end }}
{{/* String literals of CEL, by commas. */}}
{{- define "netloom.cel" -}}
{{- range $number, $text := . }}{{ if $number }}, {{ end }}'{{ $text | replace "\\" "\\\\" | replace "'" "\\'" }}'{{ end }}
{{- end }}
