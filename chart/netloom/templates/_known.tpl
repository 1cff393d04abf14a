{{/* Values that are missing, and those of Cilium's chart. The schema knows both, and could not say what to do. */}}

{{/* Takes values and a name such as operator.replicas: "true" where there is such a value, or "". */}}
{{- define "netloom.given" -}}
{{- $at := .values }}
{{- $there := true }}
{{- range splitList "." .name }}
{{- if and $there (kindIs "map" $at) (hasKey $at .) }}{{ $at = index $at . }}{{ else }}{{ $there = false }}{{ end }}
{{- end }}
{{- if and $there (not (kindIs "invalid" $at)) }}true{{ end }}
{{- end }}

{{- define "netloom.validate.given" -}}
{{- $missing := list }}
{{- range $name := (.Files.Get "files/known.yaml" | fromYaml).required }}
{{- if not (include "netloom.given" (dict "values" $.Values "name" $name)) }}{{ $missing = append $missing $name }}{{ end }}
{{- end }}
{{- if $missing }}
{{- $before := ternary " Or `helm upgrade --reuse-values` brought the values of a chart that did not have it: use --reset-then-reuse-values instead." "" .Release.IsUpgrade }}
{{- fail (printf "%s: missing. Where a file or --set says null, leave it out, so that it has its default.%s" (join ", " $missing) $before) }}
{{- end }}
{{- $cilium := .Files.Get "files/cilium.yaml" | fromYaml }}
{{- $words := list }}
{{- range $name, $instead := $cilium.otherwise }}
{{- if include "netloom.given" (dict "values" $.Values "name" $name) }}{{ $words = append $words (printf "%s: %s" $name $instead) }}{{ end }}
{{- end }}
{{- $not := list }}
{{- range $cilium.not }}
{{- if include "netloom.given" (dict "values" $.Values "name" .) }}{{ $not = append $not . }}{{ end }}
{{- end }}
{{- if $not }}{{ $words = append $words (printf "%s: not done by Netloom; leave it out" (join ", " $not)) }}{{ end }}
{{- if $words }}
{{- fail (printf "values of Cilium's chart that this one does not have. %s." (join ". " $words)) }}
{{- end }}
{{- end }}

{{/* As the roles themselves read it. */}}
{{- define "netloom.validate.features" -}}
{{- range $role, $known := (.Files.Get "files/known.yaml" | fromYaml).features }}
{{- $names := list }}
{{- range splitList "," (get $.Values $role).features }}{{ with trim . }}{{ $names = append $names (trimPrefix "-" .) }}{{ end }}{{ end }}
{{- range default (list "nothing") $names }}
{{- if not (has . (append $known "*")) }}
{{- fail (printf "%s.features: %s is no feature. Write * for all of them, or of %s those that shall be, by commas; -NAME takes one away." $role . (join ", " $known)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
